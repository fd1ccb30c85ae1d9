// The page: it reads the feed, keeps ten minutes of samples, and shows one pool of one process.

import { histogram, states, timeline, watch } from "./charts.js";
import { leases, route, short } from "./leases.js";
import { at, fill, lasts, make, many, put, rate, seconds } from "./text.js";

const SPAN = 600; // seconds of the timeline
const SERVER = 60; // seconds from one look at the server's sessions to the next
const STATES = [["leased", "in use"], ["idle", "idle"], ["opening", "opening"], ["cleaning", "cleaning"], ["closing", "closing"]];
const WORDS = { ok: "OK", degraded: "DEGRADED", down: "DOWN", "not open": "NOT OPEN" };
const timelines = new Map(); // by the pool's name
const processes = new Map(); // all that have answered since the page was opened: their latest text
let snapshot = null;
let sessions = null;
let chosen = null;
let receivedAt = 0; // when the app last answered
let takenAt = 0; // when the last snapshot came: those of big pools are rare
let source = null;
let lost = false;

const statusOf = (pool) => pool.health ? pool.health.status : "unknown";
const word = (pool) => WORDS[statusOf(pool)] || "CHECKING";
const limit = (pool) => pool.stats.max_size || "∞";

function live() {
  const age = (performance.now() - takenAt) / 1000;
  return age > Math.max(3, 3 * snapshot.interval) ? `live, as of ${lasts(age)} ago` : "live";
}

function badge(pool) {
  const paused = source === null;
  at("badge").dataset.status = lost ? "lost" : statusOf(pool);
  put("badge", lost ? "NO ANSWER" : word(pool));
  const reason = lost ? "the app does not answer: what follows is old" : (pool.health && pool.health.reason) || "";
  put("reason", reason);
  put("live", paused ? `paused at ${new Date(snapshot.at * 1000).toLocaleTimeString()}`
    : lost ? `last answer ${lasts((performance.now() - receivedAt) / 1000)} ago` : live());
  document.title = `${lost ? "NO ANSWER" : word(pool)} - ${pool.name}: ${pool.stats.leased} of ${limit(pool)} in use`;
}

// What the host of a cluster's pool does, and why it takes no reads.
function hostOf({ host }) {
  if (!host) return "";
  const lag = host.lag === null ? "an unknown time" : seconds(host.lag);
  const reads = host.takes_reads ? `takes reads, ${many(host.under_way, "read")} under way` : `takes no reads: ${host.reason}`;
  return `${host.role || "unknown role"}${host.role === "standby" ? `, lags ${lag}` : ""}, ${reads}`;
}

function who(pool) {
  const { host, pid, uptime } = snapshot.process;
  const base = pool.database;
  const health = pool.health || {};
  const server = base ? [`database ${base.dbname || "-"}`, base.host && `on ${base.host}${base.port ? `:${base.port}` : ""}`,
    base.user && `as ${base.user}`].filter(Boolean).join(" ") : "database chosen at each connect";
  const version = health.server_version ? `PostgreSQL ${health.server_version}${health.role ? `, ${health.role}` : ""}` : "";
  const ping = typeof health.latency === "number" ? `ping ${seconds(health.latency)}` : "";
  const one = processes.size > 1 ? `, one of ${processes.size} that have answered` : "";
  put("who", [`process ${pid} on ${host}${one}, up ${lasts(uptime)}`, server, version, hostOf(pool), ping].filter(Boolean).join(" · "));
  const others = processes.size > 1
    ? `${processes.size} processes have answered this page: ${[...processes.values()].join(", ")}.`
    : "Another worker of the app has pools of its own, and a reload may reach it.";
  const seen = sessions && sessions.pools[pool.name];
  const told = seen ? ` The server has ${many(seen.sessions, "session")} of ${seen.role} in ${seen.database}: `
    + `${seen.own} of this pool in process ${sessions.process.pid}, ${seen.sessions - seen.own} of others.` : "";
  put("workers", `This page shows process ${pid} only. ${others}${told}`);
}

function tile(id, text, below, status) {
  put(id, text);
  put(`${id}-of`, below);
  at(id).parentElement.dataset.status = status || "";
}

function tiles(pool) {
  const { stats, minute } = pool;
  const span = `last ${Math.round(minute.seconds)} s`;
  const full = stats.max_size > 0 && stats.leased >= stats.max_size;
  tile("t-in-use", `${stats.leased} / ${limit(pool)}`, full ? "all connections are in use" : `${many(stats.size, "connection")} open`);
  const wait = stats.expected_wait ? `expected wait ${seconds(stats.expected_wait)}` : "requests wait now";
  const refused = minute.requests_refused ? `; ${minute.requests_refused} refused, ${span}` : "";
  tile("t-queue", String(stats.waiting), (stats.waiting ? wait : "no request waits now") + refused,
    stats.waiting || refused ? "degraded" : "");
  tile("t-rate", rate(minute.requests, minute.seconds), `${many(minute.requests, "request")}, ${span}`);
  tile("t-wait", seconds(minute.wait.p99), `${minute.wait.count} waited, ${span}`);
  tile("t-hold", seconds(minute.hold.p99), `${many(minute.hold.count, "lease")}, ${span}`);
  tile("t-failed", String(minute.requests_failed), minute.requests_failed ? `${minute.requests_timed_out} timed out, ${span}` : span,
    minute.requests_failed ? "degraded" : "");
  tile("t-connects", String(minute.connects_failed), `of ${many(minute.connects, "connect")}, ${span}`,
    minute.connects_failed ? "degraded" : "");
}

function notes(pool) {
  const found = [...pool.overload, ...pool.doing, ...pool.advice];
  if (pool.last_error) found.push(`last error, ${lasts(pool.last_error_age)} ago: ${pool.last_error}`);
  const long = pool.leases.filter((each) => each.age > 10);
  if (long.length) {
    found.push(`${many(long.length, "connection")} in use for more than 10 s, ${long.length > 1 ? "the longest " : ""}`
      + `for ${lasts(long[0].age)} by ${route(long[0])}`);
  }
  if (pool.budget) found.push(`budget: ${pool.budget}`);
  at("notes").hidden = found.length === 0;
  fill(at("notes").querySelector("ul"), found, (note) => make("li", note));
}

// How long requests wait and how many were refused, as far as there are any.
function pace({ stats, minute }) {
  return [
    stats.waiting && `${many(stats.waiting, "request")}, in the order in which they are served`,
    stats.expected_wait && `expected wait ${seconds(stats.expected_wait)}`,
    stats.standing && `not empty for ${lasts(stats.standing)}`,
    minute.requests_refused && `${minute.requests_refused} refused in the last ${Math.round(minute.seconds)} s`,
  ].filter(Boolean).join("; ");
}

function queue(pool) {
  put("queue-count", pace(pool));
  const first = pool.waiters.slice(0, 8);
  fill(at("queue"), first, (waiter) => {
    const item = make("li");
    const task = make("span", waiter.label || waiter.task);
    const facts = [
      waiter.priority && `priority ${waiter.priority}`,
      waiter.flow !== null && `flow ${waiter.flow}`,
      waiter.waits_at.length && short(waiter.waits_at[0]),
    ].filter(Boolean);
    for (const fact of facts) task.append(" ", make("small", fact));
    item.append(make("b", seconds(Math.max(0, waiter.age))), task);
    return item;
  });
  if (pool.stats.waiting > first.length && first.length) {
    const more = make("li");
    more.append(make("b", ""), make("span", `and ${pool.stats.waiting - first.length} more`));
    at("queue").append(more);
  }
  at("no-queue").hidden = pool.stats.waiting > 0;
}

function events(pool) {
  fill(at("events"), pool.events, (event) => {
    const item = make("li", undefined, { class: event.level });
    const text = make("span");
    text.append(make("b", event.level === "warning" ? `warning: ${event.kind}` : event.kind), event.text);
    item.append(make("time", `${lasts(event.age)} ago`), text);
    return item;
  });
  at("no-events").hidden = pool.events.length > 0;
}

function charts(pool) {
  const minute = Math.round(pool.minute.seconds);
  timeline(timelines.get(pool.name) || [], pool.stats);
  put("wait-of", `last ${minute} s, of the requests that waited`);
  put("hold-of", `last ${minute} s, from acquire to release`);
  histogram("wait", pool.minute.wait, "wait");
  histogram("hold", pool.minute.hold, "lease");
  states(pool.stats, STATES);
}

function current() {
  if (!snapshot || !snapshot.pools.length) return null;
  return snapshot.pools.find((each) => each.name === chosen) || snapshot.pools[0];
}

function render() {
  const pool = current();
  at("main").hidden = pool === null;
  at("none").hidden = !snapshot || pool !== null;
  if (pool === null) return;
  chosen = pool.name;
  choices();
  badge(pool); who(pool); tiles(pool); notes(pool); charts(pool);
  fill(at("legend"), STATES.filter(([state]) => pool.stats[state]), ([state, name]) =>
    make("span", `${pool.stats[state]} ${name}`, { class: `key ${state}` }));
  const unused = (pool.stats.max_size || pool.stats.size) - pool.stats.size;
  if (unused > 0) at("legend").append(make("span", `room for ${unused} more`, { class: "key room" }));
  leases(pool); queue(pool); events(pool);
}

function choices() {
  const names = snapshot.pools.map((each) => each.name);
  at("choice").hidden = names.length < 2;
  const select = at("pools");
  if ([...select.options].map((each) => each.value).join("\n") !== names.join("\n")) {
    fill(select, names, (name) => make("option", name, { value: name }));
  }
  select.value = chosen;
  for (const [number, pool] of snapshot.pools.entries()) {
    const text = `${pool.name}${pool.host ? `, ${pool.host.role || "unknown role"}` : ""} - ${word(pool)}`;
    if (select.options[number].textContent !== text) select.options[number].textContent = text;
  }
  const bad = snapshot.pools.filter((each) => each.name !== chosen && !["ok", "unknown"].includes(statusOf(each)));
  put("elsewhere", bad.length ? `also: ${bad.map((each) => `${each.name} ${word(each)}`).join(", ")}` : "");
}

function answered() {
  receivedAt = performance.now();
  lost = false;
}

function take(message) {
  snapshot = JSON.parse(message.data);
  takenAt = performance.now();
  answered();
  const { host, pid } = snapshot.process;
  processes.set(`${host} ${pid}`, `${pid} on ${host}`);
  for (const pool of snapshot.pools) {
    const before = snapshot.whole ? [] : timelines.get(pool.name) || [];
    const newest = before.length ? before[before.length - 1][0] : 0;
    const all = [...before, ...pool.timeline.filter((each) => each[0] > newest)];
    const last = all.length ? all[all.length - 1][0] : 0;
    timelines.set(pool.name, all.filter((each) => each[0] >= last - SPAN));
  }
  requestAnimationFrame(render);
}

function connect() {
  receivedAt = performance.now();
  source = new EventSource("events");
  source.addEventListener("message", take);
  source.addEventListener("alive", answered);
  source.addEventListener("error", check);
}

// Show that the app does not answer, rather than what it last said.
function check() {
  if (source === null) return;
  const late = (performance.now() - receivedAt) / 1000 > Math.max(5, snapshot ? 3 * snapshot.interval : 0);
  lost = late || source.readyState === EventSource.CLOSED;
  if (current()) badge(current());
  else if (lost) { at("badge").dataset.status = "lost"; put("badge", "NO ANSWER"); put("live", "reload the page"); }
}

async function askServer() {
  if (source === null || document.hidden) return;
  try {
    const answer = await fetch("server");
    if (answer.ok) sessions = await answer.json();
  } catch { /* the badge says that the app does not answer */ }
}

at("pause").addEventListener("click", () => {
  if (source === null) {
    connect();
  } else {
    source.close();
    source = null;
  }
  at("pause").setAttribute("aria-pressed", String(source === null));
  put("pause", source === null ? "Resume" : "Pause");
  render();
});
at("pools").addEventListener("change", (event) => { chosen = event.target.value; render(); });
for (const id of ["timeline", "wait", "hold"]) watch(id, () => { if (current()) charts(current()); });
window.addEventListener("resize", () => { if (current()) charts(current()); });
connect();
askServer();
setInterval(check, 1000);
setInterval(askServer, SERVER * 1000);
