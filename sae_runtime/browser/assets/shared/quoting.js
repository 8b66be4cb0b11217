// Texts of people and models as literals of JSON, of Python and of a shell, whatever they hold.

// Signs that do not show, or that turn the direction of what follows. In a literal each is written as \uXXXX, which
// means the same to JSON and to Python.
const HIDDEN = /[\u007f-\u00a0\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb]|[\ud800-\udfff]/gu;
const written = (sign) => "\\u" + sign.charCodeAt(0).toString(16).padStart(4, "0");

// A value as JSON in one line of signs that show.
export const json = (value) => JSON.stringify(value).replace(HIDDEN, written);

// A value of JSON as Python writes it. A whole number stays an int; `float` gives a float.
export function python(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, one]) => `${json(key)}: ${python(one)}`).join(", ")}}`;
  return json(value);
}

export const float = (value) => /[.e]/.test(String(value)) ? String(value) : `${value}.0`;

// An argument of a shell: between single quotes nothing has a meaning but the next single quote.
export const shell = (text) => /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

// A text at the end of a line of code, where a line break would begin a line of its own.
export function comment(text) {
  const line = json(String(text).replace(/\s+/g, " ").trim()).slice(1, -1).replaceAll('\\"', '"').replaceAll("\\\\", "\\");
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}
