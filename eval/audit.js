"use strict";
// The moving parts of an audit: the table of pairs, and one pair at a time. Every number shown here
// is made in Python.

const AUDIT = JSON.parse(byId("audit").textContent);
const SIDES = ["chosen", "rejected"];
const SHARES = ["policy_share", "reference_share", "margin_share"];

const state = { pair: null, scale: "margin_share", table: null };

// ---------------------------------------------------------------------------------------------
// the pairs

const COLUMNS = [
  {
    title: "pair",
    value: (p) => p.index,
    cell: (p) => make("a", { href: `#pair-${p.index}` }, String(p.index)),
  },
  { title: "source", text: true, value: (p) => p.source, cell: (p) => show(p.source) },
  ...["margin", "loss", "π log-ratio", "ref log-ratio"].map((title, i) =>
    numberColumn(title, (p) => p.numbers[i]),
  ),
  ...["prompt", "chosen", "rejected"].map((title, i) => ({
    title,
    value: (p) => p.tokens[i],
    cell: (p) => String(p.tokens[i]),
  })),
  numberColumn(
    "residual",
    (p) => p.numbers[4],
    (value) => number(value, 2),
  ),
  {
    title: "notes",
    text: true,
    value: notes,
    cell: (p) => (p.closes ? notes(p) : make("strong", { class: "alarm" }, notes(p))),
  },
  {
    title: "chosen begins",
    text: true,
    value: (p) => p.begins,
    cell: (p) => make("span", { class: "begins" }, show(p.begins)),
  },
];

function numberColumn(title, value, print = (v) => number(v, 6, 4)) {
  return { title, value: (row) => real(value(row)), cell: (row) => print(real(value(row))) };
}

function notes(p) {
  const said = [
    p.closes ? null : "does not close",
    p.truncated ? "truncated" : null,
    p.duplicate_of === null ? null : `same as ${p.duplicate_of}`,
  ];
  return said.filter(Boolean).join(", ");
}

function startPairs() {
  state.table = sortableTable(COLUMNS, AUDIT.pairs, (p) => go(p.index));
  byId("pairs-table").append(state.table);
  byId("before").addEventListener("click", () => step(-1));
  byId("after").addEventListener("click", () => step(1));
  byId("tokens").addEventListener("toggle", fillTokens);
  addEventListener("hashchange", () => follow(true));
  addEventListener("keydown", (event) => {
    const typing =
      event.target.closest?.("input, textarea, select") ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey;
    if (!typing && event.key === "j") step(1);
    if (!typing && event.key === "k") step(-1);
  });
  startScales();
  startTokens();
  follow(false);
}

/** The pair before or after in the order of the table. */
function step(by) {
  const rows = state.table.rows();
  const next = rows[rows.findIndex((p) => p.index === state.pair.index) + by];
  if (next) go(next.index);
}

function go(index) {
  const same = location.hash === `#pair-${index}`;
  location.hash = `#pair-${index}`;
  if (same) follow(true); // no hashchange comes of it
}

/** Open the pair that the address names, else the first one. */
function follow(scroll) {
  const asked = /^#pair-(\d+)$/.exec(location.hash);
  if (!asked && state.pair) return;
  const found = AUDIT.pairs.find((p) => asked && p.index === Number(asked[1]));
  openPair(found ?? AUDIT.pairs[0]);
  if (asked && !found)
    byId("pair-flags").prepend(`Pair ${asked[1]} was not audited; this is another. `);
  if (asked) byId("pair").scrollIntoView({ block: "start" });
  if (scroll) byId("pair-title").focus({ preventScroll: true });
}

function openPair(summary) {
  const pair = JSON.parse(byId(`data-${summary.index}`).textContent);
  for (const side of SIDES) {
    for (const key of [...SCALES.map((scale) => scale.key), "likeliest_p"])
      pair[side][key] = pair[side][key].map(real);
    for (const key of SHARES) pair[side].sums[key] = real(pair[side].sums[key]);
  }
  for (const part of [pair.chain, pair.closing])
    for (const key in part) part[key] = real(part[key]);
  state.pair = pair;
  hideCard();
  const rows = state.table.rows();
  for (const row of rows) state.table.line(row).classList.toggle("open", row === summary);
  byId("pair-title").textContent = `Pair ${pair.index}`;
  const flags = [pair.source, `${rows.indexOf(summary) + 1} of ${rows.length}`, notes(summary)];
  byId("pair-flags").replaceChildren(show(flags.filter(Boolean).join(" · ")));
  byId("before").disabled = summary === rows[0];
  byId("after").disabled = summary === rows.at(-1);
  fillText(pair);
  fillClosing(pair);
  fillTokens();
  fillChain(pair);
  fillSteps(pair);
  startWhatIf(pair);
}

// ---------------------------------------------------------------------------------------------
// sums, all numbers, chain, steps

function fillClosing(pair) {
  for (const side of SIDES) {
    const sums = SHARES.map((key) =>
      make("span", {}, `Σ ${key.replace("_", " ")}`, make("b", {}, number(pair[side].sums[key]))),
    );
    byId(`${side}-sums`).replaceChildren(...sums);
  }
  const [chosen, rejected] = SIDES.map((side) => number(pair[side].sums.margin_share));
  const { from_tokens, margin, residual, closes } = pair.closing;
  const sum = `chosen ${chosen} + rejected ${rejected} = ${number(from_tokens)}`;
  const said = closes
    ? `the margin of the training forward is ${number(margin)}: it closes`
    : `but the margin of the training forward is ${number(margin)}: IT DOES NOT CLOSE`;
  byId("closing").className = closes ? "good" : "bad";
  byId("closing").replaceChildren(
    make("b", {}, `${closes ? "✓" : "✗"} ${sum}`),
    ` ${said} (largest residual of terms and margin ${number(residual, 2)})`,
  );
}

function tokenColumns() {
  const text = (title, key) => ({
    title,
    text: true,
    value: (t) => t.part[key][t.i],
    cell: (t) => make("code", {}, show(t.part[key][t.i], true)),
  });
  return [
    { title: "completion", text: true, value: (t) => t.side, cell: (t) => t.side },
    { title: "at", value: (t) => t.i + 1, cell: (t) => String(t.i + 1) },
    text("token", "tokens"),
    { title: "id", value: (t) => t.part.ids[t.i], cell: (t) => String(t.part.ids[t.i]) },
    ...SCALES.map(({ key, title }) => numberColumn(title, (t) => t.part[key][t.i])),
    text("likeliest", "likeliest"),
    numberColumn("its p", (t) => t.part.likeliest_p[t.i]),
  ];
}

/** Made when it is looked at: it has a row for every token. */
function fillTokens() {
  const place = byId("tokens-table");
  if (!byId("tokens").open) return place.replaceChildren();
  const rows = SIDES.flatMap((side) =>
    state.pair[side].tokens.map((_, i) => ({ side, i, part: state.pair[side] })),
  );
  const columns = tokenColumns();
  const table = sortableTable(columns, rows);
  place.replaceChildren(
    copyButton("copy as TSV", () => tsv(columns, table.rows())),
    table,
  );
}

/** Numbers into the equations: what stands in braces, a negative one in parentheses. */
function fillChain(pair) {
  const values = {
    ...AUDIT,
    ...pair.chain,
    chosen_tokens: pair.chosen.tokens.length,
    rejected_tokens: pair.rejected.tokens.length,
  };
  const put = (match, minus, name, at, all) => {
    const value = minus ? -values[name] : values[name];
    const bare = at === 0 || all[at - 1] === "(";
    return value < 0 && !bare ? `(${number(value, 5)})` : number(value, 5);
  };
  for (const place of document.querySelectorAll("[data-numbers]"))
    place.textContent = place.dataset.numbers.replace(/\{(-?)([^}]+)\}/g, put);
  for (const place of document.querySelectorAll("[data-value]"))
    place.textContent = number(values[place.dataset.value]);
}

function fillSteps(pair) {
  const lines = pair.over_steps;
  byId("over-steps").hidden = !lines || AUDIT.steps.length < 2;
  if (byId("over-steps").hidden) return;
  const series = (name, kind) => ({ name, kind, values: lines[name].map(real) });
  byId("steps").replaceChildren(
    lineFigure("Terms", AUDIT.steps, [
      series("terms/policy", "of-policy"),
      series("terms/reference", "of-reference"),
    ]),
    lineFigure("Margin", AUDIT.steps, [series("margin", "of-margin")]),
    lineFigure("Loss", AUDIT.steps, [series("loss", "of-margin")]),
  );
}

// once all scripts are there
addEventListener("DOMContentLoaded", () => AUDIT.pairs.length && startPairs());
