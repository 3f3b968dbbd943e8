"use strict";
// A pair's tokens as text: coloured by one of their numbers, with all numbers in a card.

// The colour scales. Those of a group have one range, so that switching compares them; `signed`
// ones are centred at 0, others run from 0.
const SCALES = [
  {
    key: "logps",
    title: "log π",
    group: "logps",
    about: "log-probability of the token under the policy, in nats",
  },
  {
    key: "ref_logps",
    title: "log π ref",
    group: "logps",
    about: "log-probability of the token under the reference, in nats",
  },
  {
    key: "log_ratio",
    title: "log ratio",
    signed: true,
    about:
      "log π − log π ref: blue where the policy holds the token likelier than the reference does",
  },
  {
    key: "entropy",
    title: "entropy",
    about: "entropy of what the policy might have said here, in nats",
  },
  {
    key: "policy_share",
    title: "policy share",
    signed: true,
    group: "shares",
    about: "what the token adds to the policy term",
  },
  {
    key: "reference_share",
    title: "reference share",
    signed: true,
    group: "shares",
    about: "what the token adds to the reference term",
  },
  {
    key: "margin_share",
    title: "margin share",
    signed: true,
    about: "policy share − reference share: blue raises the margin, orange lowers it",
  },
  {
    key: "gradient",
    title: "gradient norm",
    about:
      "‖1[y] − p‖: how hard the token pushes on its logits, per unit of the pair’s ∂loss/∂log π",
  },
];

// ---------------------------------------------------------------------------------------------
// tokens as text

function fillText(pair) {
  byId("prompt").replaceChildren(cut(pair.prompt, "from the left"), ...tokenSpans(pair.prompt));
  for (const side of SIDES) {
    const name = side === "chosen" ? "Chosen" : "Rejected";
    byId(`${side}-title`).textContent = `${name}, ${pair[side].tokens.length} tokens`;
    byId(side).replaceChildren(...tokenSpans(pair[side], side), cut(pair[side], "from the right"));
    byId(side).firstElementChild?.setAttribute("tabindex", "0"); // then the arrow keys
  }
  colour();
}

function tokenSpans(part, side = null) {
  const special = new Set(part.special);
  return part.tokens.map((text, i) => {
    const span = make("span", { class: special.has(i) ? "tok special" : "tok" }, show(text));
    if (side) Object.assign(span.dataset, { side, at: i });
    return span;
  });
}

const cut = (part, where) =>
  part.truncated ? make("span", { class: "boundary" }, `truncated ${where}`) : "";

function startScales() {
  for (const scale of SCALES) {
    const input = make("input", { type: "radio", name: "scale", value: scale.key });
    input.checked = scale.key === state.scale;
    input.addEventListener("change", () => {
      state.scale = scale.key;
      colour();
    });
    byId("scales").append(make("label", {}, input, make("span", {}, scale.title)));
  }
}

/** Where the colours end: the 98th percentile of the sizes, so that one token takes not all. */
function range(pair, scale) {
  const keys = SCALES.filter((s) => s === scale || (scale.group && s.group === scale.group)).map(
    (s) => s.key,
  );
  const sizes = keys
    .flatMap((key) => SIDES.flatMap((side) => pair[side][key]))
    .map(Math.abs)
    .filter(Number.isFinite);
  sizes.sort((a, b) => a - b);
  return {
    end: sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes.at(-1) || 1,
    largest: sizes.at(-1) ?? 0,
  };
}

const KINDS = ["broken", "size", "negative", "positive"];

function kindOf(value, signed) {
  if (!Number.isFinite(value)) return "broken";
  if (!signed) return "size";
  return value < 0 ? "negative" : "positive";
}

/** Only a share of the full colour is set here, page.css has the colours of both themes. */
function colour() {
  const { pair } = state;
  const scale = SCALES.find(({ key }) => key === state.scale);
  const { end, largest } = range(pair, scale);
  for (const span of document.querySelectorAll(".side .tok[data-at]")) {
    const value = pair[span.dataset.side][scale.key][span.dataset.at];
    const kind = kindOf(value, scale.signed);
    for (const name of KINDS) span.classList.toggle(name, name === kind);
    span.style.setProperty("--share", Math.min(Math.abs(value) / end, 1).toFixed(3));
  }
  const sign = scale.group === "logps" ? -1 : 1;
  const beyond = largest > end;
  const ends = scale.signed ? [-end, 0, end] : [0, (sign * end) / 2, sign * end];
  const labels = ends.map((value) => number(value, 3));
  if (beyond) labels[2] = (sign < 0 ? "≤ " : "≥ ") + labels[2];
  if (beyond && scale.signed) labels[0] = "≤ " + labels[0];
  byId("legend").replaceChildren(
    make("span", { class: `ramp ${scale.signed ? "signed" : "size"}` }),
    make("span", { class: "ends" }, ...labels.map((label) => make("span", {}, label))),
  );
  byId("scale-about").textContent = scale.about;
}

// ---------------------------------------------------------------------------------------------
// a token's card

function startTokens() {
  const tokenOf = (event) => event.target.closest?.(".tok[data-at]");
  const sides = document.querySelector(".sides");
  sides.addEventListener("mouseover", (event) =>
    tokenOf(event) ? showCard(tokenOf(event)) : hideCard(),
  );
  sides.addEventListener("mouseleave", hideCard);
  sides.addEventListener("focusin", (event) => tokenOf(event) && showCard(tokenOf(event)));
  sides.addEventListener("focusout", hideCard);
  sides.addEventListener("click", (event) => tokenOf(event) && focusToken(tokenOf(event)));
  sides.addEventListener("keydown", (event) => {
    const by = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = by && tokenOf(event)?.[by];
    if (next?.dataset.at) focusToken(next);
    if (event.key === "Escape") hideCard();
    if (by) event.preventDefault();
  });
  addEventListener("scroll", () => {
    const focused = document.activeElement; // an arrow key may have scrolled to it
    if (focused.matches(".tok[data-at]")) showCard(focused);
    else hideCard();
  });
}

/** One token of a side is a stop of the Tab key, the one that had the focus last. */
function focusToken(span) {
  span.parentElement.querySelector("[tabindex]")?.removeAttribute("tabindex");
  span.setAttribute("tabindex", "0");
  span.focus();
}

function showCard(span) {
  const part = state.pair[span.dataset.side];
  const i = Number(span.dataset.at);
  const rows = SCALES.map(({ key, title }) => [title, number(part[key][i], 5)]);
  const likeliest = make(
    "span",
    {},
    make("code", {}, show(part.likeliest[i], true)),
    ` ${number(part.likeliest_p[i], 4)}`,
  );
  rows.push([
    "likeliest",
    part.likeliest[i] === part.tokens[i]
      ? make("span", {}, "itself ", number(part.likeliest_p[i], 4))
      : likeliest,
  ]);
  const title = make(
    "p",
    {},
    make("code", {}, show(part.tokens[i], true)),
    ` ${span.dataset.side} ${i + 1}, id ${part.ids[i]}`,
  );
  const list = rows.map(([name, value]) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)),
  );
  const card = byId("card");
  card.replaceChildren(title, make("table", {}, make("tbody", {}, ...list)));
  card.hidden = false;
  document.querySelector("[aria-describedby=card]")?.removeAttribute("aria-describedby");
  span.setAttribute("aria-describedby", "card");
  const at = span.getClientRects()[0]; // of its first line
  const below = at.bottom + 8 + card.offsetHeight < innerHeight;
  card.style.top = `${Math.max(below ? at.bottom + 8 : at.top - card.offsetHeight - 8, 4)}px`;
  const rightmost = document.documentElement.clientWidth - card.offsetWidth - 8;
  card.style.left = `${Math.max(Math.min(at.left, rightmost), 8)}px`;
}

const hideCard = () => (byId("card").hidden = true);
