// Small pictures as SVG: bars and a double logarithmic line. They take the page's colours, are as wide as their place,
// are read by pointer, finger and arrow keys, and can be saved as SVG.

import { make } from "./shared/elements.js";
import { small } from "./words.js";

const HEIGHT = 200, RIGHT = 10, TOP = 10, BASE = HEIGHT - 38;
const SIGN = 7; // pixels of a digit on the axis
const NS = "http://www.w3.org/2000/svg";

// Bars. counts: of each bar; edges: one more than counts; shade(i): 0 to 1, or null for the plain colour; xText: of an
// edge's value; xName, yName: of the axes; read(i): the sentence about a bar; xTicks: values with a tick; lines: values
// with a line of their own.
export function bars({ counts, edges, shade = () => null, xTicks = null, xText = small, xName, yName, lines = [], ...about }) {
  const low = edges[0], high = edges[edges.length - 1], most = Math.max(...counts, 1);
  return picture(about, counts.length, (width) => {
    const yTicks = ticksOf(0, most, Math.min(4, most)), left = margin(yTicks, small);
    const x = scale(low, high, left, width - RIGHT), y = scale(0, most, BASE, TOP);
    const parts = [...yAxis(yTicks, y, left, width, small, yName), ...xAxis(xTicks ?? ticksOf(low, high, width / 70), x, left, width, xText, xName)];
    counts.forEach((count, i) => {
      const begin = x(edges[i]), wide = Math.max(1, x(edges[i + 1]) - begin - 1);
      const top = count ? Math.min(y(count), BASE - 1.5) : BASE; // one match must show
      const bar = element("rect", { class: "bar", x: round(begin), y: round(top), width: round(wide), height: round(BASE - top) });
      const part = shade(i);
      if (part !== null) { bar.setAttribute("class", "bar shaded"); bar.style.setProperty("--share", part.toFixed(3)); }
      parts.push(bar);
    });
    parts.push(...lines.map((value) => element("line", { class: "quantile", x1: round(x(value)), x2: round(x(value)), y1: TOP, y2: BASE })));
    const places = counts.map((_, i) => (x(edges[i]) + x(edges[i + 1])) / 2);
    return { parts, places, marked: (i) => element("rect", { class: "marked", x: round(x(edges[i])), y: TOP, width: round(x(edges[i + 1]) - x(edges[i])), height: BASE - TOP }) };
  });
}

// Lines on double logarithmic axes. lines: [{name, x: [...], y: [...], dashed}], values above 0; the first is read.
export function logLog({ lines, xName, yName, xText = small, yText = small, ...about }) {
  const xs = lines.flatMap((line) => line.x), ys = lines[0].y;
  const xEnds = decades(Math.min(...xs), Math.max(...xs), false), yEnds = decades(Math.min(...ys), Math.max(...ys), true);
  const yTicks = powers(...yEnds, 6), left = margin(yTicks, yText);
  return picture(about, lines[0].x.length, (width) => {
    const x = logScale(...xEnds, left, width - RIGHT), y = logScale(...yEnds, BASE, TOP);
    const parts = [...yAxis(yTicks, y, left, width, yText, yName), ...xAxis(powers(...xEnds, 8), x, left, width, xText, xName)];
    lines.slice().reverse().forEach((line) => parts.push(element("path", {
      class: line.dashed ? "line dashed" : "line", d: pathOf(line, x, (value) => Math.min(y(value), BASE)) })));
    lines.forEach((line, i) => parts.push(...legend(line, left, lines.length - i)));
    const places = lines[0].x.map(x);
    return { parts, places, marked: (i) => element("circle", { class: "point", cx: round(places[i]), cy: round(y(ys[i])), r: 4 }) };
  });
}

// The figure. description: what the picture says, for those who do not see it; heading: the element of its title.
function picture({ title, description, read, heading = "h3" }, count, draw) {
  const reading = make("p", { className: "reading", attributes: { "aria-live": "polite" } });
  const canvas = make("div", { className: "canvas" });
  let svg = null, drawn = null, mark = null, chosen = -1;
  const redraw = (width) => {
    drawn = draw(width);
    svg = element("svg", { class: "chart", viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", tabindex: 0 });
    svg.append(named("title", title), named("desc", description), ...drawn.parts);
    svg.setAttribute("aria-label", `${title}. ${description}`);
    canvas.replaceChildren(svg);
    if (chosen >= 0) choose(chosen);
  };
  const choose = (i) => {
    chosen = i;
    mark?.remove();
    if (i < 0) { reading.textContent = ""; return; }
    mark = drawn.marked(i);
    svg.append(mark);
    reading.textContent = read(i);
  };
  const nearest = (event) => {
    const place = event.clientX - svg.getBoundingClientRect().left;
    let best = 0;
    drawn.places.forEach((one, i) => { if (Math.abs(one - place) < Math.abs(drawn.places[best] - place)) best = i; });
    choose(best);
  };
  canvas.addEventListener("pointermove", nearest);
  canvas.addEventListener("pointerdown", nearest);
  canvas.addEventListener("pointerleave", () => choose(-1));
  canvas.addEventListener("focusout", () => choose(-1));
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(Math.min(count - 1, Math.max(0, chosen + by)));
  });
  let last = 0;
  new ResizeObserver(([{ contentRect: { width } }]) => {
    if (Math.round(width) !== last && width > 0) redraw(last = Math.round(width));
  }).observe(canvas);
  const save = make("button", { type: "button", className: "plain save", title: "Save this picture", attributes: { "aria-label": `Save the picture ${title} as SVG` }, on: { click: () => svg && saveSvg(svg, title) } }, "SVG");
  return make("figure", {}, make("figcaption", {}, make(heading, {}, title), save), canvas, reading);
}

// --- Scales and axes ---

const scale = (low, high, from, to) => (value) => from + (to - from) * (high > low ? (value - low) / (high - low) : 0.5);
const logScale = (low, high, from, to) => { const line = scale(Math.log(low), Math.log(high), from, to); return (value) => line(Math.log(value)); };
const round = (value) => Math.round(value * 10) / 10;
const decades = (low, high, floor) => [floor ? 10 ** Math.floor(Math.log10(low) + 1e-9) : low, Math.max(floor ? 10 ** Math.ceil(Math.log10(high) - 1e-9) : high, low * 10)];

function ticksOf(low, high, about) {
  const rough = (high - low) / Math.max(about, 1), power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough) ?? power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function powers(low, high, most) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9), every = Math.ceil((last - first + 1) / most);
  return Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i)).filter((_, i) => i % every === 0);
}

// Room for the labels of an upright axis and its name.
const margin = (ticks, text) => 24 + SIGN * Math.max(...ticks.map((tick) => text(tick).length), 1);

function xAxis(ticks, x, left, width, text, name) {
  return [element("line", { class: "axis", x1: left, x2: width - RIGHT, y1: BASE, y2: BASE }),
    ...ticks.flatMap((tick) => [element("line", { class: "axis", x1: round(x(tick)), x2: round(x(tick)), y1: BASE, y2: BASE + 4 }),
      words(text(tick), Math.min(x(tick), width - 3 - SIGN * text(tick).length / 2), BASE + 16, "middle")]),
    words(name, (left + width - RIGHT) / 2, HEIGHT - 4, "middle", "name")];
}

function yAxis(ticks, y, left, width, text, name) {
  const label = words(name, 0, 0, "middle", "name");
  label.setAttribute("transform", `translate(11 ${(TOP + BASE) / 2}) rotate(-90)`);
  return [label, ...ticks.flatMap((tick) => [element("line", { class: "grid", x1: left, x2: width - RIGHT, y1: round(y(tick)), y2: round(y(tick)) }),
    words(text(tick), left - 6, y(tick) + 4, "end")])];
}

// The names of lines stand below at the left, where falling lines are not.
function legend(line, left, row) {
  const y = BASE + 8 - 16 * row;
  return [element("line", { class: line.dashed ? "line dashed" : "line", x1: left + 8, x2: left + 28, y1: y - 4, y2: y - 4 }),
    words(line.name, left + 34, y, "start")];
}

function pathOf(line, x, y) {
  return line.x.map((value, i) => line.y[i] > 0 ? `${i ? "L" : "M"}${round(x(value))} ${round(y(line.y[i]))}` : "").join("");
}

function element(tag, attributes) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}

function named(tag, text) {
  const made = element(tag, {});
  made.textContent = text;
  return made;
}

function words(text, x, y, anchor, kind = "tick") {
  const made = element("text", { class: kind, x: round(x), y: round(y), "text-anchor": anchor });
  made.textContent = text;
  return made;
}

// The picture alone needs the colours and the rules that the page gives it.
function saveSvg(svg, title) {
  const copy = svg.cloneNode(true), page = getComputedStyle(document.documentElement);
  const rules = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).filter((rule) => rule.selectorText?.includes(".chart"));
  const colours = ["--ink", "--dim", "--line", "--accent", "--heat", "--bar", "--card", "--deepest"].map((name) => `${name}:${page.getPropertyValue(name)}`);
  const style = element("style", {});
  style.textContent = `svg{${colours.join(";")};background:var(--card);font-family:system-ui,sans-serif}${rules.map((rule) => rule.cssText).join("\n")}`;
  copy.prepend(style);
  const url = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
  make("a", { href: url, download: `${title.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.svg` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
