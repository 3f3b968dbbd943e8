"use strict";
// What every page shares: elements, text that cannot act, numbers, tables that sort, the theme.
// Text goes in by textContent and append alone: nothing here makes HTML of it.

const HIDDEN = JSON.parse(document.getElementById("hidden-characters").textContent);
const HIDDEN_PATTERN = new RegExp(
  "([" +
    HIDDEN.map(([a, b]) => `\\u{${a.toString(16)}}-\\u{${b.toString(16)}}`).join("") +
    "\\n\\t])",
  "u",
);

/** An element; children are elements or text, attributes must not be "style" (the CSP forbids it). */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Of SVG; its namespace comes from an element of the page, which then needs no address in it. */
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(byId("svg").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const byId = (id) => document.getElementById(id);

/** Foreign text as `show` of page.py has it; with `gaps`, spaces are marked too. */
function show(text, gaps = false) {
  const fragment = document.createDocumentFragment();
  for (const part of text.split(HIDDEN_PATTERN)) {
    if (part === "\n") fragment.append(make("span", { class: "mark" }, "↵"), "\n");
    else if (part === "\t") fragment.append(make("span", { class: "mark" }, "⇥"), "\t");
    else if (HIDDEN_PATTERN.test(part))
      fragment.append(make("span", { class: "hidden" }, code(part)));
    else fragment.append(...(gaps ? markGaps(part) : [part]));
  }
  fragment.normalize(); // a line break and the text behind it are one node
  return fragment;
}

const markGaps = (text) =>
  text.split(/( )/).map((part) => (part === " " ? make("span", { class: "mark" }, "·") : part));

const code = (sign) => "U+" + sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

/** As `number` of page.py; with `places` so many digits behind the point, which lines columns up. */
function number(value, digits = 6, places = null) {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value < 0 ? "−inf" : "inf";
  const tiny = value !== 0 && Math.abs(value) < 0.5 * 10 ** -places;
  if (places !== null && !tiny && Math.abs(value) < 1e7)
    return value.toFixed(places).replace("-", "−");
  const [mantissa, exponent] = value.toExponential((places === null ? digits : 2) - 1).split("e");
  const near = Number(exponent) >= -4 && Number(exponent) < digits; // as C's %g has it
  const text =
    near && places === null
      ? String(Number(value.toPrecision(digits)))
      : `${Number(mantissa)}e${Number(exponent)}`;
  return text.replace(/-/g, "−");
}

/** JSON has no NaN: page.py writes "nan", "inf", "-inf". */
function real(value) {
  const names = { nan: NaN, inf: Infinity, "-inf": -Infinity };
  return typeof value === "string" ? names[value] : value;
}

// ---------------------------------------------------------------------------------------------
// tables

/**
 * A table that sorts by a click on a column's head: first the largest, text from A, then turned.
 * columns: {title, value(row), cell(row) -> element or text, text: left-aligned}; open(row) where a
 * row leads somewhere. What is not finite goes last. `box.rows()` gives the rows as they stand.
 */
function sortableTable(columns, rows, open = null) {
  const body = make("tbody");
  const lines = rows.map((row) => ({ row, line: tableLine(columns, row, open) }));
  let sorted = { column: -1, up: false };
  const heads = columns.map((column, i) => {
    const button = make("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      const up = sorted.column === i ? !sorted.up : Boolean(column.text);
      sorted = { column: i, up };
      lines.sort((a, b) => (up ? 1 : -1) * compare(column.value(a.row), column.value(b.row), up));
      heads.forEach((head, k) =>
        head.setAttribute("aria-sort", k !== i ? "none" : up ? "ascending" : "descending"),
      );
      body.append(...lines.map(({ line }) => line));
    });
    return make(
      "th",
      { scope: "col", class: column.text ? "words" : "", "aria-sort": "none" },
      button,
    );
  });
  body.append(...lines.map(({ line }) => line));
  const table = make(
    "table",
    { class: "sortable" },
    make("thead", {}, make("tr", {}, ...heads)),
    body,
  );
  const box = make("div", { class: "scroll", tabindex: "0" }, table);
  box.rows = () => lines.map(({ row }) => row);
  const lineOf = new Map(lines.map(({ row, line }) => [row, line]));
  box.line = (row) => lineOf.get(row);
  return box;
}

function compare(a, b, up) {
  if (typeof a === "string") return a < b ? -1 : a > b ? 1 : 0;
  const last = up ? Infinity : -Infinity; // where what is no number goes
  const [x, y] = [a, b].map((value) => (Number.isNaN(value) || value === null ? last : value));
  return x === y ? 0 : x - y;
}

function tableLine(columns, row, open) {
  const cells = columns.map((column) =>
    make("td", { class: column.text ? "words" : "" }, column.cell(row)),
  );
  const line = make("tr", {}, ...cells);
  if (open) line.addEventListener("click", () => open(row));
  return line;
}

/** Tab-separated values. What could break a row is escaped, and no cell starts a formula. */
function tsv(columns, rows) {
  const cell = (value) => (typeof value === "number" ? String(value) : tsvText(value));
  const line = (values) => values.map(cell).join("\t");
  return (
    [
      line(columns.map((c) => c.title)),
      ...rows.map((row) => line(columns.map((c) => c.value(row)))),
    ].join("\n") + "\n"
  );
}

function tsvText(text) {
  const escapes = { "\n": "\\n", "\t": "\\t" };
  const safe = text
    .replace(/\\/g, "\\\\")
    .split(HIDDEN_PATTERN)
    .map((part) => (HIDDEN_PATTERN.test(part) ? (escapes[part] ?? `[${code(part)}]`) : part))
    .join("");
  return /^[=+\-@]/.test(safe) ? "'" + safe : safe;
}

/** A button that copies what `text()` gives and says so. */
function copyButton(title, text) {
  const button = make("button", { type: "button", class: "copy" }, title);
  button.addEventListener("click", async () => {
    await copy(text());
    button.textContent = "copied";
    setTimeout(() => (button.textContent = title), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // not there, or not allowed for files
    const area = document.body.appendChild(make("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

// ---------------------------------------------------------------------------------------------
// figures

/** Numbers to 3 digits, or to as many as tell them apart, at most 6. */
function apart(values) {
  const texts = [3, 4, 5, 6].map((digits) => values.map((value) => number(value, digits)));
  return texts.find((some) => new Set(some).size === values.length) ?? texts.at(-1);
}

/** An empty figure with grid and tick labels, and where values go in it: {picture, x(v), y(v)}. */
function plane(title, xTicks, yTicks, xEnds, yEnds) {
  const [width, height, left, right, top, bottom] = [400, 190, 56, 16, 8, 24];
  const scale =
    ([low, high], start, end) =>
    (v) =>
      start + ((end - start) * (v - low)) / (high - low || 1);
  const [x, y] = [scale(xEnds, left, width - right), scale(yEnds, height - bottom, top)];
  const picture = draw("svg", {
    class: "figure",
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": title,
  });
  for (const [i, name] of apart(yTicks).entries()) {
    const at = y(yTicks[i]);
    picture.append(
      draw("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }),
      draw("text", { class: "tick", x: left - 6, y: at + 4, "text-anchor": "end" }, name),
    );
  }
  for (const value of xTicks)
    picture.append(
      draw(
        "text",
        { class: "tick", x: x(value), y: height - 6, "text-anchor": "middle" },
        number(value),
      ),
    );
  return { picture, x, y };
}

/** A path through points [x, y], with gaps where one is not finite. */
function path(points, kind) {
  const whole = ([x, y]) => Number.isFinite(x) && Number.isFinite(y);
  const parts = points.map((point, i) =>
    !whole(point)
      ? ""
      : `${i && whole(points[i - 1]) ? "L" : "M"}${point[0].toFixed(2)} ${point[1].toFixed(2)}`,
  );
  return draw("path", { class: `line ${kind}`, d: parts.join("") });
}

/** Lines over steps; series: [{name, values, kind}], kind is the class that colours. */
function lineFigure(title, steps, series) {
  const finite = series.flatMap((line) => line.values).filter(Number.isFinite);
  const head = make("h4", {}, title);
  if (!finite.length) return make("figure", {}, head, make("p", {}, "No finite number."));
  let [low, high] = [Math.min(...finite), Math.max(...finite)];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const some = steps.filter((_, i) => i % Math.ceil(steps.length / 6) === 0);
  const { picture, x, y } = plane(
    title,
    some,
    [low, (low + high) / 2, high],
    [steps[0], steps.at(-1)],
    [low, high],
  );
  for (const { values, kind } of series) {
    const points = values.map((value, i) => [x(steps[i]), y(value)]);
    picture.append(
      path(points, kind),
      ...points
        .filter(([, py]) => Number.isFinite(py))
        .map(([px, py]) => draw("circle", { class: `knot ${kind}`, cx: px, cy: py, r: 2.5 })),
    );
  }
  const key = series.map(({ name, kind }) => make("span", { class: `series ${kind}` }, name));
  return make(
    "figure",
    {},
    head,
    picture,
    ...(series.length > 1 ? [make("figcaption", {}, ...key)] : []),
  );
}

// ---------------------------------------------------------------------------------------------
// the theme: the system's, or after a click on the button the other one

function startTheme() {
  const button = byId("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () =>
    (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const label = () => (button.textContent = isDark() ? "☀ light" : "☾ dark");
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  dark.addEventListener("change", label);
  label();
}

if (byId("theme")) startTheme();
