"""eval/audit_equations.py: the numbers put into the equations give the numbers beside them.

Each row's right side is a formula once its braces are filled; it is computed here as Python and
compared with the chain, which comes from `objective_loss` and autograd in float64.

pytest tests/test_audit_equations.py
"""

# ruff: noqa: RUF001 equations have the signs of mathematics

import math
import re

import pytest

from eval.audit_equations import chain_rows, chain_table, loss_equation, margin_equation
from tests.audit_example import example

CASES = [("dpo", 0.0), ("spl", 0.0), ("spl", 0.1), ("h_dpo", 0.2), ("robust", 0.1), ("ipo", 0.0)]


def compute(numbers: str, values: dict[str, float]) -> float:
    """A right side with its numbers, as Python: log means the natural one."""

    def put(match: re.Match) -> str:
        return f"({-values[match[2]] if match[1] else values[match[2]]!r})"

    text = re.sub(r"\{(-?)([^}]+)\}", put, numbers)
    text = text.replace("−", "-").replace("·", "*").replace("[", "(").replace("]", ")")
    text = text.replace("²", "**2")
    text = re.sub(r"log σ\((\(.*?\))\)", r"log(sigma(\1))", text).replace("σ", "sigma")
    names = {"log": math.log, "exp": math.exp, "sigma": lambda x: 1 / (1 + math.exp(-x))}
    return eval(text, {"__builtins__": {}}, names)


@pytest.mark.parametrize(("objective", "smoothing"), CASES)
def test_each_equation_gives_its_number(objective, smoothing):
    data = example(count=6, objective=objective, label_smoothing=smoothing)
    for pair in data["pairs"]:
        lengths = {f"{name}_tokens": len(pair[name]["tokens"]) for name in ("chosen", "rejected")}
        values = data | pair["chain"] | lengths
        checked = set()
        for _, right, numbers, name in chain_rows(data):
            if right:  # the sums over tokens have no formula
                assert compute(numbers, values) == pytest.approx(values[name], rel=1e-9, abs=1e-12)
                checked.add(name)
        sums = {f"{m}_{s}_logps" for m in ("policy", "reference") for s in ("chosen", "rejected")}
        left_out = {"sigmoid"} if objective == "ipo" else set()
        assert checked == set(pair["chain"]) - sums - left_out


def test_a_likelihood_term_is_in_loss_and_in_the_gradient_of_chosen():
    """s = 0.5, |y_w| = 4, log pi(y_w) = -8: the loss gains 0.5 * 8 / 4 = 1, the gradient -0.125."""
    data = {"objective": "dpo", "label_smoothing": 0.0, "sft_weight": 0.5}
    values = {"margin": 0.0, "policy_coef": 0.1, "sft_weight": 0.5, "policy_chosen_logps": -8.0,
              "chosen_tokens": 4}  # fmt: skip
    rows = {name: numbers for _, _, numbers, name in chain_rows(data)}
    assert compute(rows["loss"], values) == pytest.approx(math.log(2) + 1)
    assert compute(rows["gradient/chosen"], values) == pytest.approx(-0.05 - 0.125)
    assert compute(rows["gradient/rejected"], values) == pytest.approx(0.05)


def test_coefficients_have_the_symbols_of_their_objective():
    assert "αβ [" in margin_equation("h_dpo") and "β [" in margin_equation("h_dpo")
    assert "α [" in margin_equation("spl") and "α" not in margin_equation("dpo")
    assert margin_equation("ipo").count("/|") == 4
    assert (
        loss_equation({"objective": "ipo", "label_smoothing": 0}) == "loss = (margin/β − 1/(2β))²"
    )


def test_the_table_has_a_place_for_every_number():
    data = example(count=1)
    html = chain_table(data)
    places = re.findall(r'data-value="([^"]+)"', html)
    assert places == list(data["pairs"][0]["chain"])
    assert html.count("data-numbers=") == len(places)
