"""The equations of an audit: those of `model/objective.py` as HTML, beside a pair's numbers.

No command of its own. A row of the chain is an equation, the same with numbers put in, and the
result; audit.js puts in what stands in braces, from the pair's chain.
"""

# ruff: noqa: RUF001 equations have the signs of mathematics

from collections.abc import Mapping
from typing import Any

from eval.page import plain, table

SYMBOLS = {
    "dpo": ("β", "β"),
    "spl": ("α", "β"),
    "h_dpo": ("αβ", "β"),
    "ipo": ("β", "β"),
    "robust": ("β", "β"),
}
AUDITED = tuple(SYMBOLS)  # objectives whose margin is a policy's term minus a reference's
WEIGHTS = {"alpha": "α", "beta": "β", "label_smoothing": "ε", "sft_weight": "<i>s</i>"}
CHOSEN, REJECTED = "<i>y</i><sub>w</sub>", "<i>y</i><sub>l</sub>"


def logp(model: str, completion: str) -> str:
    name = "<i>π</i>" if model == "policy" else "<i>π</i><sub>ref</sub>"
    return f"log {name}({completion}|<i>x</i>)"


def ratio(model: str, objective: str) -> str:
    """What is subtracted from what; ipo divides both by the completion's length."""
    own, other = logp(model, CHOSEN), logp(model, REJECTED)
    if objective == "ipo":
        return f"{own}/|{CHOSEN}| − {other}/|{REJECTED}|"
    return f"{own} − {other}"


def margin_equation(objective: str) -> str:
    a, b = SYMBOLS[objective]
    policy, reference = (ratio(model, objective) for model in ("policy", "reference"))
    return (
        f'margin = <span class="of-policy">{a} [{policy}]</span> '
        f'− <span class="of-reference">{b} [{reference}]</span>'
    )


def loss_equation(data: Mapping[str, Any]) -> str:
    if data["objective"] == "ipo":
        loss = "(margin/β − 1/(2β))²"
    elif data["objective"] == "robust":
        loss = "[−(1 − ε) log σ(margin) + ε log σ(−margin)] / (1 − 2ε)"
    elif data["label_smoothing"]:
        loss = "−(1 − ε) log σ(margin) − ε log σ(−margin)"
    else:
        loss = "−log σ(margin)"
    if data.get("sft_weight"):
        loss += f" − <i>s</i> {logp('policy', CHOSEN)}/|{CHOSEN}|"
    return f"loss = {loss}"


def loss_numbers(data: Mapping[str, Any]) -> str:
    kept, flipped = "log σ({margin})", "log σ({-margin})"
    if data["objective"] == "ipo":
        numbers = "({margin}/{beta} − 1/(2 · {beta}))²"
    elif data["objective"] == "robust":
        numbers = f"[−(1 − {{label_smoothing}}) · {kept} + {{label_smoothing}} · {flipped}]"
        numbers += " / (1 − 2 · {label_smoothing})"
    elif data["label_smoothing"]:
        numbers = f"−(1 − {{label_smoothing}}) · {kept} − {{label_smoothing}} · {flipped}"
    else:
        numbers = f"−{kept}"
    if data.get("sft_weight"):
        numbers += " − {sft_weight} · {policy_chosen_logps}/{chosen_tokens}"
    return numbers


def gradients(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """d loss / d log pi of chosen and rejected: (equation, the same with numbers).

    Written with sigmoid(-margin), which keeps its digits where sigmoid(margin) is all but 1. With s
    the sigmoid, d(-log s(m))/dm = -s(-m) and d(-log s(-m))/dm = s(m) = 1 - s(-m), so that
    label smoothing gives -(1 - eps) s(-m) + eps (1 - s(-m)) = -(s(-m) - eps), and the robust loss
    -((1 - eps) s(-m) + eps (1 - s(-m))) / (1 - 2 eps) = -(s(-m) + eps / (1 - 2 eps)).
    """
    objective, a = data["objective"], SYMBOLS[data["objective"]][0]
    if objective == "ipo":
        pull, numbers = "2 (margin/β − 1/(2β))", "2 · ({margin}/{beta} − 1/(2 · {beta}))"
        rows = [
            (f"{pull}/|{CHOSEN}|", f"{numbers}/{{chosen_tokens}}"),
            (f"−{pull}/|{REJECTED}|", f"−{numbers}/{{rejected_tokens}}"),
        ]
    else:
        pull, numbers = "σ(−margin)", "σ({-margin})"
        if objective == "robust" and data["label_smoothing"]:
            pull = f"({pull} + ε/(1 − 2ε))"
            numbers = f"({numbers} + {{label_smoothing}}/(1 − 2 · {{label_smoothing}}))"
        elif data["label_smoothing"]:
            pull, numbers = f"({pull} − ε)", f"({numbers} − {{label_smoothing}})"
        pull, numbers = f"{a} {pull}", f"{{policy_coef}} · {numbers}"
        rows = [(f"−{pull}", f"−{numbers}"), (pull, numbers)]
    if data.get("sft_weight"):
        equation, numbers = rows[0]
        rows[0] = (f"{equation} − <i>s</i>/|{CHOSEN}|",
                   f"{numbers} − {{sft_weight}}/{{chosen_tokens}}")  # fmt: skip
    return rows


def chain_rows(data: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(left side, right side, the right side with numbers, the number's name in the chain)."""
    objective, (a, b) = data["objective"], SYMBOLS[data["objective"]]
    rows = []
    for model in ("policy", "reference"):
        for name, completion in (("chosen", CHOSEN), ("rejected", REJECTED)):
            value = f"{model}_{name}_logps"
            rows.append((logp(model, completion), "", f"sum over {{{name}_tokens}} tokens", value))
    for model, short in (("policy", "pi"), ("reference", "ref")):
        lengths = ("/{chosen_tokens}", "/{rejected_tokens}") if objective == "ipo" else ("", "")
        numbers = f"{{{model}_chosen_logps}}{lengths[0]} − {{{model}_rejected_logps}}{lengths[1]}"
        rows.append((f"{short}_logratios", ratio(model, objective), numbers, f"{short}_logratios"))
    rows += [
        ("policy term", f"{a} · pi_logratios", "{policy_coef} · {pi_logratios}", "terms/policy"),
        ("reference term", f"{b} · ref_logratios", "{reference_coef} · {ref_logratios}",
         "terms/reference"),
        ("margin", "policy term − reference term", "{terms/policy} − {terms/reference}", "margin"),
    ]  # fmt: skip
    if objective != "ipo":
        rows.append(("σ(margin)", "1/(1 + e<sup>−margin</sup>)", "1/(1 + exp({-margin}))",
                     "sigmoid"))  # fmt: skip
    left, right = loss_equation(data).split(" = ", 1)
    rows.append((left, right, loss_numbers(data), "loss"))
    for name, completion, (equation, numbers) in zip(
        ("chosen", "rejected"), (CHOSEN, REJECTED), gradients(data), strict=True
    ):
        left = f"∂loss/∂{logp('policy', completion)}"
        rows.append((left, equation, numbers, f"gradient/{name}"))
    return rows


def chain_table(data: Mapping[str, Any]) -> str:
    """The equations, with places for a pair's numbers."""
    cells = [
        [
            f'<span class="left">{left}</span> '
            + (f'<span class="right">= {right}</span>' if right else "")
            + f'<span class="put-in" data-numbers="{plain(numbers)}"></span>',
            f'<output data-value="{plain(name)}"></output>',
        ]
        for left, right, numbers, name in chain_rows(data)
    ]
    return table([], cells, "chain")
