// Elements and texts that the other scripts make. All text is inserted by textContent: names of
// tasks and statements may contain HTML.

const SVG = "http://www.w3.org/2000/svg";

export const at = (id) => document.getElementById(id);

export function make(tag, text, attributes = {}) {
  const found = document.createElement(tag);
  if (text !== undefined && text !== null) found.textContent = text;
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  return found;
}

export function draw(tag, attributes, text) {
  const found = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  if (text !== undefined) found.textContent = text;
  return found;
}

export function put(id, text) {
  const place = at(id);
  if (place.textContent !== text) place.textContent = text;
}

export function fill(place, items, build) {
  place.replaceChildren(...items.map(build));
}

// A measured duration, to about three digits.
export function seconds(value) {
  if (value === null || value === undefined) return "-";
  if (value === 0) return "0 s";
  if (value < 0.001) return `${Number((value * 1e6).toPrecision(2))} µs`;
  if (value < 1) return `${Number((value * 1000).toPrecision(value < 0.01 ? 2 : 3))} ms`;
  if (value < 60) return `${Number(value.toPrecision(3))} s`;
  return lasts(value);
}

// How long something has lasted.
export function lasts(value) {
  if (value < 60) return `${Math.max(0, value).toFixed(1)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
}

export function rate(count, span) {
  if (!(span > 0)) return "-";
  const value = count / span;
  return value >= 100 ? value.toFixed(0) : value >= 10 || value === 0 ? value.toFixed(1) : value.toFixed(2);
}

export function many(number, one, several = `${one}s`) {
  return `${number} ${number === 1 ? one : several}`;
}
