"""The page of `eval.audit`: its numbers become HTML, with audit*.js for what moves.

No command of its own. What is the same for all pairs is written here; one pair at a time is shown
by audit*.js, from an element of JSON for each pair that is parsed when it is asked for. Numbers of
tokens are rounded to six digits; sums, differences and whether they close are made before that.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.audit_equations import WEIGHTS, chain_table, loss_equation, margin_equation
from eval.audit_glance import Row, glance, link
from eval.page import (
    embed,
    heading,
    number,
    rounded,
    section,
    show,
    table,
    write_page,
)

SCRIPTS = ("page.js", "audit.js", "audit_tokens.js", "audit_what_if.js")
NAMED = 20  # pairs that the verdict names
SHARES = ("policy_share", "reference_share", "margin_share")
COLUMNS = ("logps", "ref_logps", "log_ratio", "entropy", "gradient", "likeliest_p", *SHARES)


def write_audit(out: Path, data: Mapping[str, Any]) -> None:
    """Write the page of an audit to the file `out`; data: of `eval.audit_pairs.audit`."""
    rows = [dict(zip(data["glance"]["columns"], row, strict=True))
            for row in data["glance"]["rows"]]  # fmt: skip
    audited = {pair["index"] for pair in data["pairs"]}
    parts = [header(data), verdict(data), glance(data, rows, audited), tokenizer(data), pairs(data)]
    body = f"<main>\n{''.join(parts)}</main>\n"
    embedded = [embed("audit", about(data, rows))]
    embedded += [embed(f"data-{pair['index']}", pack(pair)) for pair in data["pairs"]]
    write_page(out, f"Audit of {data['policy']}", body, SCRIPTS, "".join(embedded))


# ------------------------------------------------------------------------------------------------
# data


def about(data: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """What audit.js knows before a pair is opened."""
    names = ("objective", "alpha", "beta", "label_smoothing", "policy_coef", "reference_coef")
    glance = {name: rounded(row[name] for row in rows)
              for name in ("margin", "pi_logratio", "ref_logratio")}  # fmt: skip
    return {name: data[name] for name in names} | {
        "sft_weight": data.get("sft_weight", 0.0),
        "glance": glance,
        "steps": data["steps"],
        "pairs": [summary(pair) for pair in data["pairs"]],
    }


def summary(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of pairs."""
    chain, sides = pair["chain"], (pair["prompt"], pair["chosen"], pair["rejected"])
    names = ("margin", "loss", "pi_logratios", "ref_logratios")
    return {
        "index": pair["index"],
        "source": pair["source"],
        "numbers": rounded([*(chain[name] for name in names), pair["closing"]["residual"]]),
        "tokens": [len(side["tokens"]) for side in sides],
        "begins": "".join(pair["chosen"]["tokens"][:24])[:60],
        "closes": pair["closing"]["closes"],
        "truncated": any(side["truncated"] for side in sides),
        "duplicate_of": pair.get("duplicate_of"),
    }


def pack(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair as audit.js reads it: special tokens by their places, numbers rounded, sums whole."""
    names = ("index", "source", "closing", "chain", "over_steps")
    packed = {name: whole(pair.get(name)) for name in names}
    for name in ("prompt", "chosen", "rejected"):
        side = pair[name]
        packed[name] = {key: side[key] for key in ("tokens", "ids", "truncated")}
        packed[name]["special"] = [i for i, special in enumerate(side["special"]) if special]
    for name in ("chosen", "rejected"):
        side = pair[name]
        ratio = [a - b for a, b in zip(side["logps"], side["ref_logps"], strict=True)]
        columns = {**side, "log_ratio": ratio}
        packed[name] |= {key: rounded(columns[key]) for key in COLUMNS}
        packed[name]["likeliest"] = side["likeliest"]
        packed[name]["sums"] = {key: whole(sum(side[key])) for key in SHARES}
    return packed


def whole(value: Any) -> Any:
    """Numbers as they are, but for what JSON has not: NaN and infinity become text."""
    if isinstance(value, Mapping):
        return {key: whole(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [whole(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------------------------------------
# what was audited


def header(data: Mapping[str, Any]) -> str:
    used = ["alpha"] if data["objective"] in ("spl", "h_dpo") else []
    used += ["beta", *(name for name in ("label_smoothing", "sft_weight") if data.get(name))]
    weights = ", ".join(f"{name} {WEIGHTS[name]} = {number(data[name])}" for name in used)
    coefs = (f"policy {number(data['policy_coef'])}, reference {number(data['reference_coef'])}, "
             f"τ = {number(data['tau'])}")  # fmt: skip
    facts = {
        "objective": f"<strong>{show(data['objective'])}</strong>, {weights}",
        "coefficients": coefs,
        "policy": f"<code>{show(data['policy'])}</code>",
        "reference": f"<code>{show(data['reference'])}</code>",
        "data": "<br>".join(f"<code>{show(name)}</code>" for name in data["data"]),
        "dtype": show(data["dtype"]),
        "command": f"<code>{show(data['command'])}</code>",
    }
    listed = "".join(
        f'<div class="{name}"><dt>{name}</dt><dd>{html}</dd></div>\n'
        for name, html in facts.items()
    )
    equations = (
        f'<div class="equations"><p>{margin_equation(data["objective"])}</p>\n'
        f"<p>{loss_equation(data)}</p></div>\n"
    )
    return (
        f"<header>{heading('Where the preference loss comes from')}"
        f'{equations}<dl class="facts">\n{listed}</dl></header>\n'
        "<noscript><p>The pairs need JavaScript, which this page brings along.</p></noscript>\n"
    )


def verdict(data: Mapping[str, Any]) -> str:
    """Whether the tokens sum to the margins, and whether the means are those that were logged."""
    closing, shown = data["closing"], len(data["pairs"])
    limit = f"{number(closing['tolerance'], 2)} of the size of the terms is allowed"
    limit += f" in {show(data['dtype'])}"
    largest = number(closing["largest"], 2)
    if not shown:
        kind, head = "none", "No pair was looked at token by token"
        text = "so nothing says whether the tokens sum to the margins."
    elif closing["closes"]:
        kind = "good"
        head = f"✓ The tokens of {'the one pair' if shown == 1 else f'all {shown} pairs'} "
        head += f"sum to {'its margin' if shown == 1 else 'their margins'}"
        text = f"Largest residual {largest}; {limit}."
    else:
        open_pairs = [pair for pair in data["pairs"] if not pair["closing"]["closes"]]
        kind = "bad"
        head = f"✗ The tokens of {len(open_pairs)} of {shown} pairs do not sum to the margin"
        links = ", ".join(
            f"{link(pair['index'])} ({number(pair['closing']['residual'], 2)})"
            for pair in open_pairs[:NAMED]
        )
        rest = f" and {len(open_pairs) - NAMED} more" if len(open_pairs) > NAMED else ""
        text = f"Largest residual {largest}; {limit}. Pairs: {links}{rest}"
    band = f'<div class="verdict {kind}" role="status"><p><strong>{head}</strong></p>'
    return f"{band}<p>{text}</p></div>\n{logged(data['logged'])}"


def logged(means: Mapping[str, float] | None) -> str:
    if means is None:
        return ""
    rows = [
        [f"mean {name}", number(means[name]), number(means[f"{name}_here"]),
         number(means[f"{name}_here"] - means[name], 2)]
        for name in ("margin", "loss")
    ]  # fmt: skip
    columns = ["", f"logged, step {means['step']}", "here", "difference"]
    return f'<div class="logged">{table(columns, rows, "numbers")}</div>'


# ------------------------------------------------------------------------------------------------
# what the tokenizer did


def tokenizer(data: Mapping[str, Any]) -> str:
    about = data["tokenizer"]
    ends = {"BOS": about["bos"], "EOS": about["eos"]}
    said = ", ".join(
        f"{name} <code>{show(token)}</code>" if token is not None else f"no {name}"
        for name, token in ends.items()
    )
    html = (
        f"<p>Chat format <strong>{show(about['chat_format'])}</strong> ({show(about['reason'])}); "
        f"{said}.</p>\n"
    )
    if data["pairs"]:
        html += layout(data["pairs"][0], about["bos"], about["eos"])
    return section("What the tokenizer did", html, "tokenizer")


def layout(pair: Mapping[str, Any], bos: str | None, eos: str | None) -> str:
    """A pair's tokens as the model gets them: [prompt | chosen] and [prompt | rejected]."""
    prompt = tokens(pair["prompt"], bos, eos)
    parts = [f'<p class="text">{prompt}<span class="boundary">prompt ends</span></p>']
    for name in ("chosen", "rejected"):
        side = pair[name]
        text = f'<span class="boundary">{name} begins</span>{tokens(side, bos, eos)}'
        parts.append(f'<p class="text">{text}</p>')
    found = [sentence(pair, name, bos, eos) for name in ("chosen", "rejected")]
    head = f"<h3>Pair {link(pair['index'])} as the model reads it</h3>\n"
    key = (
        '<p class="key"><span class="tok">text</span> one token '
        '<span class="tok special">name</span> special token '
        '<span class="tok special end">name</span> BOS or EOS</p>\n'
    )
    return f'{head}{key}<div class="layout">{"".join(parts)}</div>\n<p>{" ".join(found)}</p>\n'


def tokens(side: Mapping[str, Any], bos: str | None, eos: str | None) -> str:
    spans = []
    for text, special in zip(side["tokens"], side["special"], strict=True):
        kind = "tok special" if special else "tok"
        kind += " end" if special and text in (bos, eos) else ""
        spans.append(f'<span class="{kind}">{show(text)}</span>')
    return "".join(spans)


def sentence(pair: Mapping[str, Any], name: str, bos: str | None, eos: str | None) -> str:
    """How many BOS and EOS one of the two sequences has, and how it ends."""
    prompt, side = pair["prompt"], pair[name]
    special = [t for part in (prompt, side)
               for t, s in zip(part["tokens"], part["special"], strict=True) if s]  # fmt: skip
    last = bool(side["special"]) and side["special"][-1] and side["tokens"][-1] == eos
    end = "ends with EOS" if last else "<strong>does not end with EOS</strong>"
    if not last and side["truncated"]:
        end = "is truncated, so has no EOS at its end"
    counts = f"{special.count(bos)} BOS in prompt and completion" if bos else "no BOS"
    return f"{name.capitalize()}: {len(side['tokens'])} tokens, {counts}; it {end}."


# ------------------------------------------------------------------------------------------------
# one pair


def pairs(data: Mapping[str, Any]) -> str:
    """What audit.js fills."""
    if not data["pairs"]:
        return section("Pairs", "<p>None was asked for: pass --pairs, --worst or --sample.</p>",
                       "pairs")  # fmt: skip
    help = (
        "<p>Sort by a column's head; a row opens its pair. Keys: <kbd>k</kbd> and <kbd>j</kbd> for "
        "the pair before and after, <kbd>←</kbd> and <kbd>→</kbd> from "
        "one token to the next once a token has the focus.</p>\n"
    )
    table = section("Pairs, token by token", f'{help}<div id="pairs-table"></div>\n', "pairs")
    divided = "Shares are divided by the length of the completion, as ipo has it."
    divided = f"<p>{divided}</p>" if data["objective"] == "ipo" else ""
    return f"""{table}<section id="pair">
<div class="bar"><div class="pager">
<button type="button" id="before">&lsaquo; before</button>
<h2 id="pair-title" tabindex="-1"></h2>
<button type="button" id="after">after &rsaquo;</button></div>
<div id="scales" role="radiogroup" aria-label="colour of the tokens"></div>
<div class="scale"><div id="legend"></div><p id="scale-about"></p></div></div>
<p id="pair-flags"></p>
<div class="side"><h3>Prompt</h3><p class="text" id="prompt"></p></div>
<div class="sides"><div class="side"><h3 id="chosen-title"></h3><p class="text" id="chosen"></p>
<div id="chosen-sums"></div></div>
<div class="side"><h3 id="rejected-title"></h3><p class="text" id="rejected"></p>
<div id="rejected-sums"></div></div></div>
<p id="closing"></p>
<details id="tokens"><summary>All numbers of all tokens, as a table</summary>
{divided}<div id="tokens-table"></div></details>
<div class="columns"><div><h3>From log-probabilities to the loss</h3>
{chain_table(data)}</div>
<div><h3>What if</h3><div id="what-if"></div></div></div>
<div id="over-steps"><h3>Over the checkpoints of the run</h3><div id="steps"></div></div>
</section>
<div id="card" role="tooltip" hidden></div>
"""
