// Elements of a page. What a model, a text or a person says becomes text nodes and nothing else: no function here, and
// none in the files that use it, makes HTML out of strings.

// make("p", {className: "note", attributes: {role: "status"}, on: {click}}, child, ...): an element with its children.
export function make(tag, options = {}, ...children) {
  const { on = {}, attributes = {}, ...properties } = options;
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Marks that turn the direction of what follows, and other signs that do not show, are written out.
export function plain(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
    (sign) => "\\u" + sign.charCodeAt(0).toString(16).padStart(4, "0"));
}

// A number as people read it: so many significant digits, whole numbers with commas, "–" for none.
export const number = (value, digits = 3) => value === null || value === undefined ? "–"
  : Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(digits)).toString();
