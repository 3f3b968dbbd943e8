"""An audit as `eval.audit_pairs.audit` makes it, of pairs and numbers that are invented.

`example` is deterministic, and consistent: chains come from `objective_loss` in float64 and tokens
sum to them. To look at the page:  python -m tests.audit_example PAGE.html [--broken] [--hostile]
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.objective import coefficients, objective_loss

TEXTS = [
    ("Why is the sky blue, in two sentences?",
     "Sunlight scatters off the molecules of the air, and short wavelengths scatter far more than "
     "long ones, in proportion to the inverse fourth power of the wavelength. So blue light "
     "reaches your eye from every direction of the sky, while red light passes straight on.",
     "The sky is blue because it reflects the ocean. The ocean is blue, so the sky is too."),
    ("Write a Python function that returns the n-th Fibonacci number.",
     "def fibonacci(n: int) -> int:\n\ta, b = 0, 1\n\tfor _ in range(n):\n\t\ta, b = b, a + b\n"
     "\treturn a\n\nIt takes n additions, and no recursion.",
     "def fib(n):\n    return fib(n - 1) + fib(n - 2)\n\nThis is the recursive definition, which "
     "is elegant and well known."),
    ("My flight was cancelled. What can I ask of the airline?",
     "First ask for a new booking at no cost, or the full fare back: that is your choice, not "
     "theirs.\n\n- Keep the boarding pass and every receipt.\n- Ask for the reason in writing.\n"
     "- Where EU rules hold, compensation of €250 to €600 may be due.",
     "I'm sorry to hear that! Cancelled flights are so frustrating. You should call the airline "
     "and they will surely help you out. Have a great day! 😊"),
    ("Translate into Japanese: The library closes at six.",
     "図書館は六時に閉まります。",
     "The library closes at six は日本語で「図書館」です。"),
    ("Is 91 a prime number?",
     "No: 91 = 7 · 13.",
     "Yes, 91 is a prime number, because it is odd and does not end in 5. Prime numbers are those "
     "that only 1 and the number itself divide, and there are infinitely many of them."),
    ("Give me a tip for better sleep.",
     "Get up at the same time every day, weekends included; the hour of falling asleep follows.",
     "There are many tips for better sleep, and it is important to find what works for you. Some "
     "people like tea, some people like music, and some people like reading. Ultimately, sleep is "
     "important, and better sleep is a journey rather than a destination."),
]  # fmt: skip
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> <!-- \"quotes\" 'too' & &lt;",
    "a\u2028b\u2029c \x00 \ud800 \u202etxt.exe\u202c \u2066x\u2069 \u200bzero\u200d\ufeff =1+1",
)
LENGTH_BIAS = 0.05  # of the policy's log-ratio, per token


def example(
    count: int = 24,
    objective: str = "spl",
    alpha: float = 0.12,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    glance: int = 400,
    repeat: int = 1,  # the completions so many times, for long pairs
    hostile: bool = False,
    broken: bool = False,
    command: str = "python -m eval.audit --run runs/spl-example --sample 24 --out audit.html",
) -> dict[str, Any]:
    random = np.random.default_rng(0)
    steps = [0, 50, 100, 150, 200]
    settings = (objective, alpha, beta, label_smoothing)
    shown = [one_pair(random, 3 * i, settings, repeat, steps) for i in range(count)]
    if hostile:
        shown[1] = one_pair(random, shown[1]["index"], settings, 1, steps, ("<b>?", *HOSTILE))
        shown[1]["source"] = "evil\u202e<i>.jsonl:7"
    if broken:
        for pair in shown[2:4]:
            pair["closing"] |= {"from_tokens": pair["chain"]["margin"] + 0.02, "residual": 3.1e-3,
                                "closes": False}  # fmt: skip
    policy_coef, reference_coef = coefficients(objective, alpha, beta)
    rows = glance_rows(random, glance, shown, settings)
    margins = [row[2] for row in rows]
    return {
        "command": command,
        "objective": objective, "alpha": alpha, "beta": beta, "label_smoothing": label_smoothing,
        "policy_coef": policy_coef, "reference_coef": reference_coef,
        "tau": policy_coef / reference_coef,
        "policy": "models/example-135m + runs/spl-example", "reference": "models/example-135m",
        "data": ["pairs/helpful.jsonl", "pairs/careful.jsonl"], "dtype": "float32",
        "logged": {
            "step": 200, "margin": float(np.mean(margins)) + 2e-6, "loss": 0.5921,
            "margin_here": float(np.mean(margins)), "loss_here": 0.5921004,
        },
        "closing": {
            "largest": max((pair["closing"]["residual"] for pair in shown), default=0.0),
            "tolerance": 1e-4,
            "closes": all(pair["closing"]["closes"] for pair in shown),
        },
        "counts": {
            "pairs": len(rows),
            "saturated": sum(abs(margin) > 20 for margin in margins),
            "contradicted": sum(margin < 0 for margin in margins),
            "duplicates": sum(row[10] is not None for row in rows),
            "truncated_prompts": 0,
            "truncated_completions": sum(row[9] for row in rows),
        },
        "glance": {
            "columns": ["index", "source", "margin", "loss", "pi_logratio", "ref_logratio",
                        "prompt_tokens", "chosen_tokens", "rejected_tokens", "truncated",
                        "duplicate_of"],
            "rows": rows,
        },
        "tokenizer": {"chat_format": "chatml", "bos": None, "eos": "<|im_end|>",
                      "reason": "the chat template in models/example-135m/tokenizer_config.json"},
        "steps": steps,
        "pairs": shown,
    }  # fmt: skip


def split(text: str) -> list[str]:
    """Into pieces of at most seven characters, words with the space before them."""
    return re.findall(r" ?\w{1,7}|\n+|\s|[^\w\s]", text)


def side_of(pieces: list[str], special: tuple[str, ...]) -> dict[str, Any]:
    return {
        "tokens": pieces,
        "ids": [sum(piece.encode("utf-8", "surrogatepass")) * 7 % 49152 for piece in pieces],
        "special": [piece in special for piece in pieces],
        "truncated": False,
    }


def one_pair(
    random: np.random.Generator,
    index: int,
    settings: tuple[str, float, float, float],
    repeat: int,
    steps: list[int],
    texts: tuple[str, str, str] | None = None,
) -> dict[str, Any]:
    prompt, *completions = texts or TEXTS[index // 3 % len(TEXTS)]
    start, end = "<|im_start|>", "<|im_end|>"
    system = "You are a helpful assistant."
    pieces = [start, *split(f"system\n{system}"), end, "\n", start, *split(f"user\n{prompt}"), end,
              "\n", start, *split("assistant\n")]  # fmt: skip
    pair = {
        "index": index,
        "source": f"pairs/{'helpful' if index % 2 else 'careful'}.jsonl:{index + 1}",
        "prompt": side_of(pieces, (start, end)),
    }
    objective, alpha, beta, _ = settings
    coefs, parts = coefficients(objective, alpha, beta), []
    for name, sign, text in zip(("chosen", "rejected"), (1, -1), completions, strict=True):
        side = side_of([*split(text) * repeat, end], (start, end))
        numbers(random, side, 0.06 * sign)
        weight = sign / len(side["tokens"]) if objective == "ipo" else sign
        own, other = (
            coef * weight * np.array(side[key])
            for coef, key in zip(coefs, ("logps", "ref_logps"), strict=True)
        )
        side |= {"policy_share": own.tolist(), "reference_share": other.tolist(),
                 "margin_share": (own - other).tolist()}  # fmt: skip
        pair[name] = side
        parts.append(own - other)
    pair["chain"] = chain_of(pair, settings)
    total = float(np.concatenate(parts).sum())
    pair["closing"] = {"from_tokens": total, "margin": pair["chain"]["margin"],
                       "residual": abs(random.normal()) * 1e-8, "closes": True}  # fmt: skip
    pair["over_steps"] = lines(pair["chain"], steps)
    return pair


def numbers(random: np.random.Generator, side: dict[str, Any], drift: float) -> None:
    """What a model might say: words are harder than their ends, the reference a little apart."""
    count = len(side["tokens"])
    hard = np.array([1.0 if re.match(r" \w|\w", piece) else 0.3 for piece in side["tokens"]])
    reference = -random.exponential(1.3, count) * hard
    policy = np.minimum(reference + random.normal(drift, 0.25, count) * hard, -1e-6)
    p = np.exp(policy)
    entropy = np.abs(random.normal(1.4, 0.6, count)) * hard
    best = np.where(p > 0.4, p, p + (1 - p) * 0.5)
    side |= {
        "logps": policy.tolist(),
        "ref_logps": reference.tolist(),
        "entropy": entropy.tolist(),
        "gradient": ((1 - p) * np.sqrt(1 + random.uniform(0.1, 0.9, count))).tolist(),
        "likeliest": [t if q > 0.4 else " the" for t, q in zip(side["tokens"], p, strict=True)],
        "likeliest_p": best.tolist(),
    }


def chain_of(pair: dict[str, Any], settings: tuple[str, float, float, float]) -> dict[str, float]:
    objective, alpha, beta, smoothing = settings
    sides = [pair["chosen"], pair["rejected"]]
    policy = torch.tensor([sum(side["logps"]) for side in sides], dtype=torch.float64)
    reference = torch.tensor([sum(side["ref_logps"]) for side in sides], dtype=torch.float64)
    lengths = torch.tensor([len(side["tokens"]) for side in sides], dtype=torch.float64)
    policy.requires_grad_()
    loss, terms = objective_loss(objective, policy, reference, lengths, alpha, beta, smoothing)
    loss.sum().backward()
    coefs = coefficients(objective, alpha, beta)
    margin = terms["rewards/margins"].item()
    return {
        "policy_chosen_logps": policy[0].item(),
        "policy_rejected_logps": policy[1].item(),
        "reference_chosen_logps": reference[0].item(),
        "reference_rejected_logps": reference[1].item(),
        "pi_logratios": terms["terms/policy"].item() / coefs[0],
        "ref_logratios": terms["terms/reference"].item() / coefs[1],
        "terms/policy": terms["terms/policy"].item(),
        "terms/reference": terms["terms/reference"].item(),
        "margin": margin,
        "sigmoid": torch.tensor(margin, dtype=torch.float64).sigmoid().item(),
        "loss": loss.item(),
        "gradient/chosen": policy.grad[0].item(),
        "gradient/rejected": policy.grad[1].item(),
    }


def lines(chain: dict[str, float], steps: list[int]) -> dict[str, list[float]]:
    """The policy moves from the reference to where it is, the faster the earlier."""
    shares = [1 - 0.5 ** (step / 60) for step in steps]
    start = chain["terms/reference"]
    policy = [start + (chain["terms/policy"] - start) * share for share in shares]
    margins = [value - chain["terms/reference"] for value in policy]
    return {
        "margin": margins,
        "terms/policy": policy,
        "terms/reference": [chain["terms/reference"]] * len(steps),
        "loss": np.logaddexp(0, -np.array(margins)).tolist(),
    }


def glance_rows(
    random: np.random.Generator,
    count: int,
    shown: list[dict[str, Any]],
    settings: tuple[str, float, float, float],
) -> list[list]:
    objective, alpha, beta, _ = settings
    policy_coef, reference_coef = coefficients(objective, alpha, beta)
    by_index = {pair["index"]: pair for pair in shown}
    rows = []
    for i in range(max(count, *(index + 1 for index in by_index), 1) if shown else count):
        chosen, rejected = (int(n) for n in random.integers(8, 220, 2))
        pi = LENGTH_BIAS * (chosen - rejected) + random.normal(3, 9)
        ref = pi * 0.6 + random.normal(0, 5)
        margin = policy_coef * pi - reference_coef * ref
        row = [i, f"pairs/{'helpful' if i % 2 else 'careful'}.jsonl:{i + 1}", margin,
               float(np.logaddexp(0, -margin)), pi, ref, int(random.integers(20, 90)), chosen,
               rejected, i % 41 == 5, i - 7 if i % 53 == 9 else None]  # fmt: skip
        if i in by_index:
            pair, chain = by_index[i], by_index[i]["chain"]
            sizes = [len(pair[side]["tokens"]) for side in ("prompt", "chosen", "rejected")]
            row[1:9] = [pair["source"], chain["margin"], chain["loss"], chain["pi_logratios"],
                        chain["ref_logratios"], *sizes]  # fmt: skip
        rows.append(row)
    return rows


def main() -> None:
    from eval.audit_page import write_audit

    flags = {word.removeprefix("--"): True for word in sys.argv[2:]}
    write_audit(Path(sys.argv[1]), example(**flags))


if __name__ == "__main__":
    main()
