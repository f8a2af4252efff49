/* Elements are made of text and attributes alone, never of markup: what a run says is shown, whatever it says. */
const SVG = "http://www.w3.org/2000/svg";
const RUN_COLORS = ["#3b6fd4", "#d2691e", "#2a9d6f", "#b0457b", "#7a5cc9", "#a38a00", "#1f93b5", "#c0392b"];
const CLASS_COLORS = [
  [226, 134, 86], [92, 142, 214], [104, 170, 108], [206, 104, 138], [150, 120, 206], [196, 164, 74],
  [74, 168, 176], [200, 96, 84], [132, 148, 90], [122, 132, 158], [222, 158, 176], [96, 116, 196],
];

/** Data whose objects have their own names alone: of a run that calls a metric "constructor", too. */
function plain(node) {
  if (typeof node !== "object" || node === null) return node;
  Object.values(node).forEach(plain);
  return Array.isArray(node) ? node : Object.setPrototypeOf(node, null);
}

/** An element: `on*` properties are listeners, `data` sets data-*, all others are attributes. */
function el(tag, properties = {}, ...children) {
  const svg = ["svg", "line", "circle", "rect", "path"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A colour of the page's style, as it is now. */
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A number as a person reads it. */
function short(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  return String(Number(value.toPrecision(digits)));
}

const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

function bytes(text) {
  const raw = atob(text);
  const found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

/** Whether a browser without a screen tries the page: it draws no frames, and nothing is near to what is seen. */
const TRYING = location.hash === "#selftest";

/** Calls back when the screen is drawn next. */
const nextFrame = TRYING
  ? (then) => setTimeout(() => then(performance.now()), 16)
  : (then) => requestAnimationFrame(then);

/** A section of the page with its heading; `id` is what the menu leads to. */
function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), ...children);
}

/** A table that scrolls by itself where it is wider than the screen. */
function scrolling(label, table) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, table);
}

/** Calls back once, when an element comes near to what is seen. */
const whenSeen = (() => {
  const waiting = new WeakMap();
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watch.unobserve(target);
      waiting.get(target)();
    }
  }, { rootMargin: "300px" });
  return (node, then) => {
    if (TRYING) return setTimeout(then, 0);
    waiting.set(node, then);
    return watch.observe(node);
  };
})();

/** What is to be drawn anew when light becomes dark. */
const redraws = new Set();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((draw) => draw()));
