"use strict";

// Insert all text by textContent: task names and statements may contain HTML.

const SPAN = 600; // seconds of the timeline
const OLD = 10; // seconds after which a lease is highlighted
const STATES = ["idle", "leased", "opening", "cleaning", "closing"];
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);
const timelines = new Map();
let snapshot = null;
let chosen = null;
let shown = null; // the number of the connection in the dialog
let receivedAt = 0;

function make(tag, text, attributes = {}) {
  const found = document.createElement(tag);
  if (text !== undefined) found.textContent = text;
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  return found;
}

function draw(tag, attributes) {
  const found = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  return found;
}

function seconds(value) {
  if (value === null || value === undefined) return "-";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${Number((value * 1000).toPrecision(value < 0.01 ? 2 : 3))} ms`;
  if (value < 60) return `${Number(value.toPrecision(3))} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  return `${(value / 3600).toFixed(1)} h`;
}

function clock(value) {
  if (value < 60) return `${value.toFixed(1)} s`;
  if (value < 3600) return `${Math.floor(value / 60)}:${String(Math.floor(value % 60)).padStart(2, "0")} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

function times(number) {
  return number === 1 ? "once" : `${number} times`;
}

// "/srv/app/orders.py:39 in refund" without its folders.
function short(place) {
  return place.replace(/^.*[\\/](?=[^\\/]*:\d+ in )/, "");
}

function put(id, text) {
  const place = at(id);
  if (place.textContent !== text) place.textContent = text;
}

function fill(place, items, build) {
  place.replaceChildren(...items.map(build));
}

function now(pool) {
  const stats = pool.stats;
  put("t-leased", `${stats.leased} / ${stats.max_size || "∞"}`);
  put("t-size", String(stats.size));
  put("t-waiting", String(stats.waiting));
  put("t-wait", stats.wait.count ? seconds(stats.wait.p99) : "-");
  put("t-use", stats.use.count ? seconds(stats.use.p99) : "-");
  put("t-failed", String(stats.requests_failed));
  at("t-waiting").parentElement.classList.toggle("hot", stats.waiting > 0);
  at("t-leased").parentElement.classList.toggle(
    "hot", stats.max_size > 0 && stats.leased >= stats.max_size);
  at("t-failed").parentElement.classList.toggle("hot", stats.requests_failed > 0);
  const notes = [...pool.doing, ...pool.advice];
  if (pool.last_error) notes.push(`last error, ${clock(pool.last_error_age)} ago: ${pool.last_error}`);
  at("notes").hidden = notes.length === 0;
  fill(at("notes").firstElementChild, notes, (note) => make("li", note));
}

function cell(connection) {
  const lease = connection.lease;
  const box = make(lease ? "button" : "div", undefined, { class: "cell", "data-state": connection.state });
  const head = make("b", `${connection.state} `);
  head.append(make("small", clock(connection.since)));
  box.append(head);
  if (lease) {
    box.type = "button";
    box.dataset.number = connection.number;
    if (lease.age > OLD) box.dataset.old = "yes";
    box.append(make("span", lease.holder), make("span", short(lease.borrowed_at) || lease.transaction));
    box.setAttribute("aria-label",
      `connection ${connection.number}, leased for ${clock(lease.age)} by ${lease.holder}: details`);
    box.title = [lease.holder, lease.borrowed_at].filter(Boolean).join("\n");
    box.addEventListener("click", () => open(connection.number));
  } else {
    box.append(make("span", `no. ${connection.number}${connection.pid ? `, backend ${connection.pid}` : ""}`));
    box.append(make("span", `leased ${times(connection.uses)}`));
  }
  return box;
}

function cells(pool) {
  const focused = document.activeElement && document.activeElement.dataset.number;
  fill(at("legend"), STATES.filter((state) => pool.stats[state]), (state) =>
    make("span", `${pool.stats[state]} ${state}`, { class: `key ${state}` }));
  fill(at("cells"), pool.connections, cell);
  at("no-cells").hidden = pool.connections.length > 0;
  if (focused) {
    const again = at("cells").querySelector(`[data-number="${Number(focused)}"]`);
    if (again) again.focus();
  }
}

function queue(pool) {
  put("queue-count", pool.stats.waiting ? `${pool.stats.waiting} waiting` : "");
  const first = pool.waiters.slice(0, 8);
  fill(at("queue"), first, (waiter) => {
    const item = make("li");
    const who = make("span", waiter.task);
    if (waiter.waits_at.length) who.append(" ", make("small", short(waiter.waits_at[0])));
    item.append(make("b", seconds(Math.max(0, waiter.age))), who);
    return item;
  });
  if (pool.stats.waiting > first.length && first.length) {
    const more = make("li");
    more.append(make("b", ""), make("span", `and ${pool.stats.waiting - first.length} more`));
    at("queue").append(more);
  }
  at("no-queue").hidden = pool.stats.waiting > 0;
}

function timeline(pool) {
  const samples = timelines.get(pool.name) || [];
  const place = at("timeline");
  const most = Math.max(1, ...samples.map((each) => Math.max(each[1], each[3])));
  const last = samples.length ? samples[samples.length - 1][0] : 0;
  const span = samples.length ? Math.min(SPAN, Math.max(60, last - samples[0][0])) : SPAN;
  const x = (time) => (SPAN - ((last - time) / span) * SPAN).toFixed(2);
  const y = (value) => (100 - (value / most) * 96).toFixed(2);
  const path = (index) => samples.map((each, number) => `${number ? "L" : "M"}${x(each[0])} ${y(each[index])}`).join("");
  place.setAttribute("viewBox", `0 0 ${SPAN} 100`);
  place.replaceChildren(draw("line", { class: "base", x1: 0, x2: SPAN, y1: 100, y2: 100 }));
  if (samples.length) {
    const begin = x(samples[0][0]);
    place.append(draw("path", { class: "area", d: `${path(2)}L${SPAN} 100L${begin} 100Z` }));
    for (const [index, name] of [[1, "size"], [2, "leased"], [3, "waiting"]]) {
      place.append(draw("path", { class: `stroke ${name}`, d: path(index) }));
    }
  }
  put("since", `${span < 120 ? `${Math.round(span)} s` : `${Math.round(span / 60)} min`} ago`);
  const peak = Math.max(0, ...samples.map((each) => each[3]));
  put("peak", `highest ${most}${peak ? `, ${peak} waiting at most` : ""}`);
  place.setAttribute("aria-label",
    `Of the last ten minutes: at most ${most} connections or requests, at most ${peak} waiting`);
}

function histogram(name, times) {
  const place = at(name);
  const bars = [];
  let before = 0;
  let lower = 0;
  for (const [edge, upto] of times.buckets) {
    bars.push({ lower, upper: edge, count: upto - before });
    before = upto;
    lower = edge === null ? lower : edge;
  }
  put(`${name}-count`, times.count ? `${times.count}` : "");
  let first = bars.findIndex((bar) => bar.count);
  let last = bars.length - 1 - [...bars].reverse().findIndex((bar) => bar.count);
  if (first < 0) { first = 0; last = 11; }
  while (last - first < 11) { if (first > 0) first -= 1; if (last - first < 11 && last < bars.length - 1) last += 1; }
  const seen = bars.slice(first, last + 1);
  const most = Math.max(1, ...seen.map((bar) => bar.count));
  place.setAttribute("viewBox", `0 0 ${seen.length} 100`);
  place.replaceChildren(draw("line", { class: "base", x1: 0, x2: seen.length, y1: 100, y2: 100 }));
  seen.forEach((bar, number) => {
    // The square root keeps rare long durations visible beside many short ones.
    const height = bar.count ? Math.max(2, Math.sqrt(bar.count / most) * 96) : 0;
    const late = bar.lower >= times.p99 && times.count ? " late" : "";
    const box = draw("rect", { class: `bar${late}`, x: number + 0.08, width: 0.84, y: 100 - height, height });
    const title = draw("title", {});
    title.textContent = `${bar.count} up to ${bar.upper === null ? "more" : seconds(bar.upper)}`;
    box.append(title);
    place.append(box);
  });
  fill(at(`${name}-axis`), [seen[0].lower, seen[Math.floor(seen.length / 2)].lower, seen[seen.length - 1].upper],
    (edge) => make("span", edge === null ? "more" : seconds(edge)));
  const values = [["p50", times.p50], ["p90", times.p90], ["p99", times.p99], ["longest", times.max]];
  fill(at(`${name}-spread`), times.count ? values : [], ([label, value]) => {
    const box = make("div");
    box.append(make("span", label), seconds(value));
    return box;
  });
  place.setAttribute("aria-label", times.count
    ? `${times.count} of them: ${values.map(([label, value]) => `${label} ${seconds(value)}`).join(", ")}`
    : "none yet");
}

function events(pool) {
  fill(at("events"), pool.events, (event) => {
    const item = make("li", undefined, { class: event.level });
    const text = make("span");
    text.append(make("b", event.kind), event.text);
    item.append(make("time", `${clock(event.age)} ago`), text);
    return item;
  });
  at("no-events").hidden = pool.events.length > 0;
}

function places(found) {
  const list = make("ol");
  for (const place of found) list.append(make("li", place));
  return list;
}

function detail(pool) {
  const connection = shown === null ? null : pool.connections.find((each) => each.number === shown);
  if (!at("lease").open) return;
  const lease = connection && connection.lease;
  put("lease-title", lease ? lease.holder : "The connection was returned");
  if (!lease) return;
  const rows = [
    ["leased for", clock(lease.age)],
    ["borrowed at", lease.stack.length ? places(lease.stack)
      : "unknown: set the pool's leak_timeout to record where each connection is borrowed"],
    ["its task is at", lease.waits_at.length ? places(lease.waits_at) : "not known"],
    ["transaction", lease.transaction],
    ["last statement", lease.last_sql ? make("code", lease.last_sql) : "not known"],
    ["backend", lease.pid === null ? "-" : String(lease.pid)],
    ["connection", `no. ${connection.number}, open for ${clock(connection.age)}, leased ${times(connection.uses)}`],
    ["", lease.connection],
  ];
  const list = make("dl");
  for (const [name, value] of rows) {
    const box = make("dd");
    box.append(value);
    list.append(make("dt", name), box);
  }
  at("lease-body").replaceChildren(list);
}

function open(number) {
  shown = number;
  at("lease").showModal();
  render();
}

function render() {
  if (!snapshot || !snapshot.pools.length) return;
  const pool = snapshot.pools.find((each) => each.name === chosen) || snapshot.pools[0];
  chosen = pool.name;
  put("name", `${pool.name}: ${pool.stats.min_size} to ${pool.stats.max_size || "any number of"} connections`);
  document.title = `${pool.stats.leased}/${pool.stats.max_size || "∞"} ${pool.name}`;
  now(pool); cells(pool); queue(pool); timeline(pool);
  histogram("wait", pool.stats.wait); histogram("use", pool.stats.use);
  events(pool); detail(pool);
}

function choices() {
  const names = snapshot.pools.map((each) => each.name);
  at("choice").hidden = names.length < 2;
  const select = at("pools");
  if ([...select.options].map((each) => each.value).join("\n") !== names.join("\n")) {
    fill(select, names, (name) => make("option", name, { value: name }));
    if (names.includes(chosen)) select.value = chosen;
  }
}

function take(message) {
  snapshot = JSON.parse(message.data);
  receivedAt = performance.now();
  for (const pool of snapshot.pools) {
    const before = snapshot.whole ? [] : timelines.get(pool.name) || [];
    const newest = before.length ? before[before.length - 1][0] : 0;
    const all = [...before, ...pool.timeline.filter((each) => each[0] > newest)];
    const last = all.length ? all[all.length - 1][0] : 0;
    timelines.set(pool.name, all.filter((each) => each[0] >= last - SPAN));
  }
  state("live", "live");
  choices();
  requestAnimationFrame(render);
}

function state(name, text) {
  at("live").dataset.state = name;
  put("live", text);
}

at("pools").addEventListener("change", (event) => { chosen = event.target.value; render(); });
at("lease").addEventListener("close", () => { shown = null; });
const source = new EventSource("events");
source.addEventListener("message", take);
source.addEventListener("error", () => {
  if (source.readyState === EventSource.CLOSED) state("lost", "no answer: reload the page");
});
setInterval(() => {
  if (performance.now() - receivedAt > 5000 && source.readyState !== EventSource.CLOSED) {
    state("lost", receivedAt ? "the app does not answer" : "connecting");
  }
}, 1000);
