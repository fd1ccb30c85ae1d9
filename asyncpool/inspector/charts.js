// The charts: ten minutes of sizes with the queue on a strip of its own, and the last minute's
// distributions. Each has axes with ticks, and a line of text for what is under the pointer.

import { at, draw, lasts, many, put, seconds } from "./text.js";

const SPAN = 600; // seconds of the timeline
const LEFT = 40;
const RIGHT = 12;
const NAME = 28; // width of a name such as "p99"
const DECADES = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100, 1000];

function step(most, ticks) {
  const raw = Math.max(most / ticks, 1e-9);
  const power = 10 ** Math.floor(Math.log10(raw));
  return Math.max(1, [1, 2, 5, 10].find((each) => each * power >= raw) * power);
}

function widthOf(place) {
  return Math.max(240, Math.round(place.getBoundingClientRect().width));
}

// Horizontal lines with their values; the scale ends at the first line that is above all values.
function rules(place, width, top, bottom, highest, ticks) {
  const by = step(highest, ticks);
  const most = Math.ceil(highest / by) * by;
  const y = (value) => bottom - (value / most) * (bottom - top);
  for (let value = 0; value <= most + 1e-9; value += by) {
    place.append(draw("line", { class: value ? "grid" : "base", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    place.append(draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  return y;
}

function clockOf(time) {
  return new Date(time * 1000).toLocaleTimeString();
}

const pointers = new Map(); // by chart: what is pointed at, as a share of its width

// What is under the pointer, or chosen with the arrow keys, is shown as text.
export function watch(id, redraw) {
  const place = at(id);
  const point = (share) => { pointers.set(id, share); redraw(); };
  place.addEventListener("pointermove", (event) => {
    const box = place.getBoundingClientRect();
    point((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT));
  });
  place.addEventListener("pointerleave", () => point(null));
  place.addEventListener("blur", () => point(null));
  place.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -0.01, ArrowRight: 0.01, Home: -1, End: 1 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    point(Math.min(1, Math.max(0, (pointers.get(id) ?? 1) + move)));
  });
}

export function timeline(samples, stats) {
  const place = at("timeline");
  const maxSize = stats.max_size;
  const width = widthOf(place);
  const [top, middle, strip, bottom] = [14, 150, 178, 222];
  const last = samples.length ? samples[samples.length - 1][0] : 0;
  const span = samples.length ? Math.min(SPAN, Math.max(60, last - samples[0][0])) : SPAN;
  const x = (time) => LEFT + (1 - (last - time) / span) * (width - LEFT - RIGHT);
  const most = Math.max(1, maxSize, ...samples.map((each) => each[1]));
  const longest = Math.max(0, ...samples.map((each) => each[3]));
  const queueTop = Math.max(1, longest);
  place.setAttribute("viewBox", `0 0 ${width} 250`);
  place.replaceChildren();
  const y = rules(place, width, top, middle, most, 4);
  const q = rules(place, width, strip, bottom, queueTop, 2);
  place.append(draw("text", { class: "strip", x: LEFT, y: strip - 8 }, "queue (requests)"));
  const minute = span <= 60 ? 15 : span <= 180 ? 30 : span <= 300 ? 60 : 120;
  for (let ago = 0; ago <= span; ago += minute) {
    const place_x = x(last - ago);
    place.append(draw("line", { class: "grid", x1: place_x, x2: place_x, y1: top, y2: bottom }));
    const label = ago === 0 ? "now" : ago < 60 ? `-${ago} s` : `-${ago / 60} min`;
    place.append(draw("text", { x: place_x, y: bottom + 18, "text-anchor": ago === 0 ? "end" : "middle" }, label));
  }
  if (maxSize) {
    place.append(draw("line", { class: "limit", x1: LEFT, x2: width - RIGHT, y1: y(maxSize), y2: y(maxSize) }));
    place.append(draw("text", { x: width - RIGHT, y: y(maxSize) - 4, "text-anchor": "end" }, `max_size ${maxSize}`));
  }
  if (!samples.length) return;
  const line = (scale, index) => samples.map((each, number) =>
    `${number ? "L" : "M"}${x(each[0]).toFixed(1)} ${scale(each[index]).toFixed(1)}`).join("");
  const begin = x(samples[0][0]).toFixed(1);
  const end = x(last).toFixed(1);
  place.append(draw("path", { class: "area in-use", d: `${line(y, 2)}L${end} ${middle}L${begin} ${middle}Z` }));
  place.append(draw("path", { class: "stroke size", d: line(y, 1) }));
  place.append(draw("path", { class: "stroke in-use", d: line(y, 2) }));
  place.append(draw("path", { class: "area queue", d: `${line(q, 3)}L${end} ${bottom}L${begin} ${bottom}Z` }));
  place.append(draw("path", { class: "stroke queue", d: line(q, 3) }));
  const share = pointers.get("timeline") ?? null;
  let shown = [last, stats.size, stats.leased, stats.waiting];
  if (share !== null) {
    const time = last - (1 - share) * span;
    shown = samples.reduce((best, each) => Math.abs(each[0] - time) < Math.abs(best[0] - time) ? each : best);
    place.append(draw("line", { class: "pointer", x1: x(shown[0]), x2: x(shown[0]), y1: top, y2: bottom }));
  }
  put("timeline-read", `${share === null ? "now" : clockOf(shown[0])}: ${shown[2]} in use, `
    + `${many(shown[1], "connection")}, queue ${shown[3]}`);
  place.setAttribute("aria-label", `The last ${lasts(span)}: at most ${Math.max(...samples.map((each) => each[2]))} in use,`
    + ` the longest queue ${longest}. Arrow keys read the values.`);
}

// A distribution of the last minute on a logarithmic scale of durations.
export function histogram(id, times, noun) {
  const place = at(id);
  const width = widthOf(place);
  const [top, bottom] = [30, 140];
  const bars = times.buckets.map(([lower, upper, count]) => {
    const high = upper === null ? Math.max(times.max, lower * 1.19) : upper;
    return { low: Math.max(lower, high / 1.19), lower, high, upper, count };
  });
  const first = Math.min(1e-4, bars.length ? bars[0].low : 1e-4);
  const final = Math.max(first * 1e4, bars.length ? bars[bars.length - 1].high * 1.2 : 1);
  const log = Math.log(final / first);
  const x = (time) => LEFT + (Math.log(Math.max(time, first) / first) / log) * (width - LEFT - RIGHT);
  const most = Math.max(1, ...bars.map((bar) => bar.count));
  place.setAttribute("viewBox", `0 0 ${width} 165`);
  place.replaceChildren();
  const y = rules(place, width, top, bottom, most, 3);
  for (const edge of DECADES.filter((each) => each >= first * 0.99 && each <= final * 1.01)) {
    place.append(draw("line", { class: "grid", x1: x(edge), x2: x(edge), y1: top, y2: bottom }));
    place.append(draw("text", { x: x(edge), y: bottom + 16, "text-anchor": x(edge) > width - 40 ? "end" : "middle" },
      edge < 1 ? seconds(edge) : `${edge} s`));
  }
  const share = pointers.get(id) ?? null;
  const pointed = share === null ? null : first * Math.exp(Math.min(1, Math.max(0, share)) * log);
  let under = null;
  for (const bar of bars) {
    const on = pointed !== null && pointed >= bar.low && pointed < bar.high;
    if (on) under = bar;
    const height = Math.max(2, bottom - y(bar.count));
    place.append(draw("rect", { class: `bar ${id}${on ? " on" : ""}`, x: x(bar.low) + 0.5, y: bottom - height,
      width: Math.max(1, x(bar.high) - x(bar.low) - 1), height }));
  }
  const marks = times.count ? [["p50", times.p50], ["p90", times.p90], ["p99", times.p99]] : [];
  marks.forEach(([label, value], number) => {
    place.append(draw("line", { class: "mark", x1: x(value), x2: x(value), y1: top - 8, y2: bottom }));
    // The names keep their distance, within the chart.
    const after = marks.slice(0, number).reduce((free, [, each]) => Math.max(free, x(each)) + NAME, 0);
    const most = width - RIGHT - NAME * (marks.length - number);
    place.append(draw("text", { class: "mark-name", x: Math.min(Math.max(x(value), after), most), y: top - 12 }, label));
  });
  const values = [["p50", times.p50], ["p90", times.p90], ["p99", times.p99], ["longest", times.max]];
  const summary = times.count
    ? values.map(([label, value]) => `${label} ${seconds(value)}`).join(", ") : `no ${noun} in this time`;
  put(`${id}-read`, under
    ? `${under.count} of ${times.count} took ${seconds(under.lower)} to ${under.upper === null ? "more" : seconds(under.upper)}`
    : pointed !== null && times.count ? `none of ${times.count} took about ${seconds(pointed)}` : summary);
  place.setAttribute("aria-label", times.count ? `${many(times.count, noun)}: ${summary}` : summary);
}

// The connections by their state, as one bar.
export function states(stats, names) {
  const place = at("states");
  const width = widthOf(place);
  const whole = Math.max(1, stats.max_size, stats.size);
  place.setAttribute("viewBox", `0 0 ${width} 18`);
  place.replaceChildren(draw("rect", { class: "room", x: 0.5, y: 0.5, width: width - 1, height: 17, rx: 3 }));
  let from = 0;
  for (const [state, name] of names) {
    const size = (stats[state] / whole) * width;
    if (size) place.append(draw("rect", { class: `state ${state}`, x: from, y: 0, width: Math.max(1, size - 1), height: 18 }));
    from += size;
  }
  place.setAttribute("aria-label", names.filter(([state]) => stats[state])
    .map(([state, name]) => `${stats[state]} ${name}`).join(", ") || "no connection is open");
}
