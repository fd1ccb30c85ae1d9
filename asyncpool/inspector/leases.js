// The table of leases: sorted by a column, filtered by a text, and never more rows than asked for,
// so that a pool of a thousand connections stays quick. A row opens the lease's details.

import { at, fill, lasts, make, many, put } from "./text.js";

const ROWS = 100;
const LONG = 10; // seconds after which a lease is marked
const STATES = {
  "active": "query running", "in transaction": "in transaction", "failed transaction": "failed transaction",
  "idle": "no transaction", "closed": "closed", "": "not known",
};

let column = "age";
let descending = true;
let rows = ROWS;
let filter = "";
let shown = null; // the number of the connection in the dialog
let pool = null;

export const route = (lease) => lease.label || lease.holder || lease.task || "";
const query = (lease) => lease.last_sql || "";
const state = (lease) => STATES[lease.transaction] ?? lease.transaction;
const KEYS = { age: (lease) => lease.age, route, query, state, place: (lease) => lease.borrowed_at };

// "/srv/app/orders.py:39 in refund" without its folders.
export function short(place) {
  return place.replace(/^.*[\\/](?=[^\\/]*:\d+ in )/, "");
}

function compare(one, other) {
  const [a, b] = [KEYS[column](one.lease), KEYS[column](other.lease)];
  const order = a < b ? -1 : a > b ? 1 : one.number - other.number;
  return descending ? -order : order;
}

function cell(text, label, attributes = {}) {
  const found = make("td", text, { "data-label": label, ...attributes });
  if (text) found.title = text;
  return found;
}

function row(connection) {
  const lease = connection.lease;
  const found = make("tr");
  const age = cell(null, "in use for", { class: "number" });
  const lasted = make("span", lasts(lease.age));
  if (lease.age > LONG) lasted.append(" ", make("span", "long", { class: "tag" }));
  age.append(lasted);
  const who = cell(null, "route or task");
  const button = make("button", route(lease), { type: "button", class: "link", "data-number": connection.number,
    "aria-label": `${route(lease)}, in use for ${lasts(lease.age)}: details` });
  button.addEventListener("click", () => open(connection.number));
  who.append(button);
  who.title = [lease.label, lease.holder].filter(Boolean).join("\n");
  found.append(age, who, cell(query(lease) || "-", "query", { class: "code" }), cell(state(lease), "state"),
    cell(short(lease.borrowed_at) || "-", "borrowed at", { class: "code" }),
    cell(lease.pid === null ? "-" : String(lease.pid), "backend", { class: "number" }));
  return found;
}

function other(connection) {
  const found = make("tr");
  found.append(cell(String(connection.number), "connection", { class: "number" }), cell(connection.state, "state"),
    cell(lasts(connection.since), "for", { class: "number" }),
    cell(connection.pid === null ? "-" : String(connection.pid), "backend", { class: "number" }),
    cell(String(connection.uses), "leases so far", { class: "number" }));
  return found;
}

export function leases(given) {
  pool = given;
  const active = document.activeElement;
  const focused = active && active.dataset ? active.dataset.number : undefined;
  const all = pool.connections.filter((each) => each.lease);
  const words = filter.toLowerCase();
  const found = all.filter((each) => !words
    || [route(each.lease), each.lease.holder, query(each.lease), state(each.lease), each.lease.borrowed_at]
      .some((text) => text.toLowerCase().includes(words))).sort(compare);
  fill(at("leases").tBodies[0], found.slice(0, rows), row);
  for (const head of at("leases").tHead.querySelectorAll("th[data-key]")) {
    const sorted = head.dataset.key === column ? (descending ? "descending" : "ascending") : "none";
    head.setAttribute("aria-sort", sorted);
  }
  put("lease-count", words ? `${found.length} of ${all.length} in use` : `${all.length} in use`);
  at("more").hidden = found.length <= rows;
  put("more", `Show more: ${found.length - rows} are left`);
  at("leases").hidden = found.length === 0;
  at("no-leases").hidden = found.length > 0;
  put("no-leases", all.length ? "No lease has this text." : "No connection is in use.");
  at("hint").hidden = !all.length || all.some((each) => each.lease.stack.length);
  const rest = pool.connections.filter((each) => !each.lease);
  put("other-count", many(rest.length, "connection"));
  at("others").hidden = rest.length === 0;
  if (at("others").open) fill(at("other").tBodies[0], rest.slice(0, ROWS), other);
  if (focused) {
    const again = at("leases").querySelector(`[data-number="${Number(focused)}"]`);
    if (again) again.focus();
  }
  detail();
}

function places(found) {
  const list = make("ol");
  for (const place of found) list.append(make("li", place));
  return list;
}

function detail() {
  if (!at("lease").open) return;
  const connection = shown === null ? null : pool.connections.find((each) => each.number === shown);
  const lease = connection && connection.lease;
  put("lease-title", lease ? route(lease) : "The connection was returned");
  if (!lease) return;
  const table = [
    ["in use for", lasts(lease.age)],
    ["task", lease.holder],
    ["borrowed at", lease.stack.length ? places(lease.stack)
      : "not known: set the pool's leak_timeout to record where each connection is borrowed"],
    ["its task is at", lease.waits_at.length ? places(lease.waits_at) : "not known"],
    ["state", state(lease)],
    ["last query", lease.last_sql ? make("code", lease.last_sql) : "not known"],
    ["backend", lease.pid === null ? "-" : String(lease.pid)],
    ["connection", `no. ${connection.number}, open for ${lasts(connection.age)}, ${many(connection.uses, "lease")} so far`],
    ["", lease.connection],
  ];
  const list = make("dl");
  for (const [name, value] of table) {
    const box = make("dd");
    box.append(value);
    list.append(make("dt", name), box);
  }
  at("lease-body").replaceChildren(list);
}

function open(number) {
  shown = number;
  at("lease").showModal();
  detail();
}

for (const button of at("leases").tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const key = button.parentElement.dataset.key;
    descending = key === column ? !descending : key === "age";
    column = key;
    if (pool) leases(pool);
  });
}
at("filter").addEventListener("input", (event) => { filter = event.target.value; rows = ROWS; if (pool) leases(pool); });
at("more").addEventListener("click", () => { rows += ROWS; leases(pool); });
at("others").addEventListener("toggle", () => { if (pool) leases(pool); });
at("lease").addEventListener("close", () => { shown = null; });
