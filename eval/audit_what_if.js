"use strict";
// "What if": a pair's margin, loss and gradient under other coefficients, at the log-probabilities
// that it has. The objective mirrors model/objective.py; only dpo, spl and h_dpo are offered.

const FAMILY = ["dpo", "spl", "h_dpo"];

function coefficients(objective, alpha, beta) {
  return { dpo: [beta, beta], spl: [alpha, beta], h_dpo: [alpha * beta, beta] }[objective];
}

const margin = (piLogratio, refLogratio, [policyCoef, referenceCoef]) =>
  policyCoef * piLogratio - referenceCoef * refLogratio;

/** -log sigmoid(x), exact for large |x|. */
const minusLogSigmoid = (x) => Math.max(-x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

const loss = (m, smoothing) =>
  (1 - smoothing) * minusLogSigmoid(m) + (smoothing ? smoothing * minusLogSigmoid(-m) : 0);

/** d loss / d log pi(chosen); that of rejected is its negative. */
const gradient = (m, policyCoef, smoothing) => -policyCoef * (1 / (1 + Math.exp(m)) - smoothing);

// ---------------------------------------------------------------------------------------------
// what is chosen; it stays from pair to pair

const AUDITED = FAMILY.includes(AUDIT.objective); // ipo and robust are no case of these three
const SMOOTHING = AUDITED ? AUDIT.label_smoothing : 0;
const whatIf = {};

function asAudited() {
  Object.assign(whatIf, {
    objective: AUDITED ? AUDIT.objective : "dpo",
    alpha: AUDIT.alpha,
    beta: AUDIT.beta,
  });
}

asAudited();

/** The weight of the policy's term by one of alpha; dpo keeps the alpha of spl. */
const perAlpha = (objective) => (objective === "h_dpo" ? whatIf.beta : 1);

function startWhatIf(pair) {
  const choice = FAMILY.map((name) => {
    const input = make("input", { type: "radio", name: "objective", value: name });
    input.checked = name === whatIf.objective;
    input.addEventListener("change", () => {
      const alpha = (whatIf.alpha * perAlpha(whatIf.objective)) / perAlpha(name); // tau stays
      const box = byId("what-if").querySelector("[data-weight=alpha] input[type=number]");
      whatIf.objective = name;
      box.value = Number(alpha.toPrecision(12));
      box.dispatchEvent(new Event("input")); // what comes of it is shown again
    });
    return make("label", {}, input, make("span", {}, name));
  });
  const reset = make("button", { type: "button", id: "reset" }, "as audited");
  reset.addEventListener("click", () => {
    asAudited();
    startWhatIf(pair);
    byId("reset").focus();
  });
  const other = AUDITED ? "" : ` ${AUDIT.objective} itself is not among the three.`;
  byId("what-if").replaceChildren(
    make(
      "p",
      { class: "caution" },
      "At these fixed log-probabilities; not what training with these coefficients would have given.",
      other,
    ),
    make("div", { class: "choice" }, ...choice, reset),
    slider("alpha", pair),
    slider("beta", pair),
    make("div", { id: "what-if-numbers" }),
  );
  fillWhatIf(pair);
}

/** From 0.001 to 10 on a log scale, and a box for any other weight. */
function slider(name, pair) {
  const range = make("input", {
    type: "range",
    min: -3,
    max: 1,
    step: 0.01,
    "aria-label": `${name}, log scale`,
  });
  const box = make("input", { type: "number", min: 0, step: "any", "aria-label": name });
  const set = (value, from) => {
    if (!(value > 0 && Number.isFinite(value))) return; // half-typed: the last weight stays
    whatIf[name] = value;
    if (from !== box) box.value = value;
    if (from !== range) range.value = Math.log10(value);
    range.setAttribute("aria-valuetext", String(value));
    if (from) fillWhatIf(pair);
  };
  range.addEventListener("input", () =>
    set(Number((10 ** range.valueAsNumber).toPrecision(3)), range),
  );
  box.addEventListener("input", () => set(box.valueAsNumber, box));
  set(whatIf[name], null);
  return make("div", { class: "slider", "data-weight": name }, make("span", {}, name), range, box);
}

// ---------------------------------------------------------------------------------------------
// what comes of it

function fillWhatIf(pair) {
  for (const input of byId("what-if").querySelectorAll("[data-weight=alpha] input"))
    input.disabled = whatIf.objective === "dpo";
  const audited = [AUDIT.policy_coef, AUDIT.reference_coef];
  const coefs = coefficients(whatIf.objective, whatIf.alpha, whatIf.beta);
  const { chain } = pair;
  const now = AUDITED
    ? ofPair(chain, audited)
    : [...audited, audited[0] / audited[1], chain.margin, chain.loss, chain["gradient/chosen"]];
  const then = ofPair(chain, coefs);
  const names = ["policy_coef", "reference_coef", "τ", "margin", "loss", "∂loss/∂log π(chosen)"];
  const rows = names.map((name, i) => [name, now[i], then[i]]);
  if (AUDITED) rows.push(...ofAllPairs(audited, coefs)); // else the glance has ratios per token
  const cell = (value) => make("td", {}, number(value));
  const lines = rows.map(([name, a, b]) =>
    make("tr", {}, make("th", { scope: "row" }, name), cell(a), cell(b)),
  );
  const head = ["", "as audited", "what if"].map((title) => make("th", { scope: "col" }, title));
  const table = make(
    "table",
    { class: "numbers" },
    make("thead", {}, make("tr", {}, ...head)),
    make("tbody", {}, ...lines),
  );
  const without =
    AUDITED && AUDIT.sft_weight
      ? [make("p", {}, "Without the likelihood term of sft_weight.")]
      : [];
  byId("what-if-numbers").replaceChildren(
    table,
    ...without,
    curve(AUDITED ? now[3] : null, then[3]),
  );
}

/** policy_coef, reference_coef, tau, margin, loss, gradient of a pair, from its sums. */
function ofPair(chain, coefs) {
  const [pi, ref] = ["policy", "reference"].map(
    (model) => chain[`${model}_chosen_logps`] - chain[`${model}_rejected_logps`],
  );
  const m = margin(pi, ref, coefs);
  return [...coefs, coefs[0] / coefs[1], m, loss(m, SMOOTHING), gradient(m, coefs[0], SMOOTHING)];
}

/** Mean loss and the share of margins above 0, over the pairs at a glance that are finite. */
function ofAllPairs(audited, coefs) {
  const { pi_logratio, ref_logratio } = AUDIT.glance;
  const [pi, ref] = [pi_logratio, ref_logratio].map((values) => values.map(real));
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const means = (weights) => {
    const margins = pi.map((value, i) => margin(value, ref[i], weights)).filter(Number.isFinite);
    return [mean(margins.map((m) => loss(m, SMOOTHING))), mean(margins.map((m) => Number(m > 0)))];
  };
  const [now, then] = [means(audited), means(coefs)];
  return ["mean loss", "accuracy"].map((name, i) => [
    `${name} of ${pi.length} pairs`,
    now[i],
    then[i],
  ]);
}

/** The loss by the margin, with the pair as audited (ring) and under what is chosen (dot). */
function curve(now, then) {
  const points = [now, then].filter(Number.isFinite);
  const end = Math.max(4, Math.ceil(1.15 * Math.max(...points.map(Math.abs), 0)));
  const top = Math.ceil(loss(-end, SMOOTHING));
  const { picture, x, y } = plane(
    "loss by margin",
    [-end, -end / 2, 0, end / 2, end],
    [0, top / 2, top],
    [-end, end],
    [0, top],
  );
  const at = Array.from({ length: 121 }, (_, i) => -end + (i * end) / 60);
  picture.append(
    path(
      at.map((m) => [x(m), y(loss(m, SMOOTHING))]),
      "of-curve",
    ),
  );
  const dot = (m, kind) =>
    Number.isFinite(m) &&
    picture.append(
      draw("circle", {
        class: `point ${kind}`,
        cx: x(m),
        cy: y(loss(m, SMOOTHING)),
        r: kind === "ring" ? 6 : 4,
      }),
    );
  dot(now, "ring");
  dot(then, "full");
  const said = now === null ? "dot: what if" : "ring: as audited, dot: what if";
  return make(
    "figure",
    {},
    make("h4", {}, "Loss by margin"),
    picture,
    make("figcaption", {}, said),
  );
}
