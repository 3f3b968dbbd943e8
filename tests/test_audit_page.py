"""eval/audit_page.py: what Python writes of an audit; its JavaScript is in test_audit_browser.py.

Data is read back with the standard library's HTML parser.

pytest tests/test_audit_page.py
"""

# ruff: noqa: RUF001 equations have the signs of mathematics

import json
import math
import re

import pytest

from eval.audit_page import header, pack, tokenizer, tokens, verdict, write_audit
from tests.audit_example import example
from tests.test_page import Reader


def embedded(text: str) -> dict[str, dict]:
    found = Reader(text).of("script")
    return {a["id"]: json.loads(inside) for a, inside in found if a.get("type")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def hostile(folder):
    file = folder / "hostile.html"
    write_audit(file, example(count=8, glance=60, hostile=True, broken=True))
    return file


def test_pairs_are_embedded_with_rounded_tokens_and_whole_sums(folder):
    data = example(count=3, glance=20)
    write_audit(folder / "page.html", data)
    held = embedded((folder / "page.html").read_text(encoding="utf-8"))
    assert [p["index"] for p in held["audit"]["pairs"]] == [0, 3, 6]
    for pair in data["pairs"]:
        packed = held[f"data-{pair['index']}"]
        assert packed["chain"] == pair["chain"]  # to the last bit
        for side in ("chosen", "rejected"):
            assert packed[side]["tokens"] == pair[side]["tokens"]
            assert packed[side]["logps"] == [float(f"{v:.6g}") for v in pair[side]["logps"]]
            whole = math.fsum(pair[side]["margin_share"])
            assert packed[side]["sums"]["margin_share"] == pytest.approx(whole, rel=1e-12)
            last = len(pair[side]["tokens"]) - 1
            assert packed[side]["special"] == [last]  # the end of the turn


def test_a_ratio_is_taken_before_rounding():
    """log pi - log pi_ref = 1e-9, which is not left of -12.3456789 to six digits."""
    pair = example(count=1)["pairs"][0]
    pair["chosen"]["logps"][0], pair["chosen"]["ref_logps"][0] = -12.3456789, -12.345678901
    packed = pack(pair)["chosen"]
    assert packed["logps"][0] == packed["ref_logps"][0] == -12.3457
    assert packed["log_ratio"][0] == pytest.approx(1e-9, rel=1e-5)


def test_the_header_has_the_weights_that_count():
    """dpo has no alpha; label smoothing and the likelihood term are named where they are there."""
    data = example(count=1, objective="dpo")
    assert "</strong>, beta β = 0.1</dd>" in header(data)
    data |= {"label_smoothing": 0.2, "sft_weight": 0.5, "policy": "<b>\u202e"}
    said = header(data)
    assert "beta β = 0.1, label_smoothing ε = 0.2, sft_weight <i>s</i> = 0.5</dd>" in said
    assert '&lt;b&gt;<span class="hidden">U+202E</span>' in said
    assert "alpha α = 0.12, beta β = 0.1</dd>" in header(example(count=1))


def test_verdict_names_what_does_not_close():
    good, bad = verdict(example(count=4)), verdict(example(count=4, broken=True))
    assert 'class="verdict good"' in good and "all 4 pairs sum to their margins" in good
    assert 'class="verdict bad"' in bad and "2 of 4 pairs do not sum" in bad
    assert re.findall(r'href="#pair-(\d+)">\d+</a> \(0.0031\)', bad) == ["6", "9"]
    assert "all 4 pairs" not in bad
    assert "the one pair sum to its margin" in verdict(example(count=1))


def test_verdict_says_what_the_dtype_allows():
    data = example(count=1) | {"dtype": "bfloat16"}
    data["closing"]["tolerance"] = 0.05
    assert "0.05 of the size of the terms is allowed in bfloat16." in verdict(data)


def test_a_duplicate_is_named_where_the_glance_leaves_it_out(folder):
    data = example(count=2, glance=20)
    data["pairs"][1]["duplicate_of"] = 7
    data["glance"]["rows"] = [row for row in data["glance"]["rows"] if row[0] not in (0, 3)]
    write_audit(folder / "duplicate.html", data)
    held = embedded((folder / "duplicate.html").read_text(encoding="utf-8"))["audit"]
    assert [pair["duplicate_of"] for pair in held["pairs"]] == [None, 7]


def test_no_pair_is_no_good_verdict(folder):
    data = example(count=0, glance=5)
    assert 'class="verdict none"' in verdict(data)
    write_audit(folder / "none.html", data | {"logged": None})
    assert 'id="pair"' not in (folder / "none.html").read_text(encoding="utf-8")


def test_logged_means_stand_beside_ours():
    """0.25 logged and 0.26 here differ by 0.01."""
    data = example(count=1)
    data["logged"] = {"step": 7, "margin": 0.25, "margin_here": 0.26, "loss": 1, "loss_here": 1}
    cells = "<td>mean margin</td><td>0.25</td><td>0.26</td><td>0.01</td>"
    assert cells in verdict(data) and "logged, step 7" in verdict(data)


def test_numbers_that_are_none_reach_the_page_as_text(folder):
    data = example(count=1, glance=3)
    pair = data["pairs"][0]
    pair["chosen"]["logps"][0] = pair["chain"]["margin"] = pair["closing"]["residual"] = math.nan
    write_audit(folder / "nan.html", data)
    held = embedded((folder / "nan.html").read_text(encoding="utf-8"))["data-0"]
    assert held["chosen"]["logps"][0] == held["chain"]["margin"] == "nan"


def test_the_layout_says_where_sequences_start_and_end(folder):
    data = example(count=1)
    data["pairs"][0]["rejected"] |= {"truncated": True}
    for key in ("tokens", "special"):
        del data["pairs"][0]["rejected"][key][-1]
    data["tokenizer"]["bos"] = "<|im_start|>"
    html = tokenizer(data)
    assert "Chosen: 59 tokens, 3 BOS in prompt and completion; it ends with EOS." in html
    assert "Rejected: 22 tokens, 3 BOS in prompt and completion; it is truncated" in html
    prompt, chosen, rejected = html.split('<p class="text">')[1:]
    assert "prompt ends" in prompt and "chosen begins" in chosen and "rejected begins" in rejected
    assert prompt.count('<span class="tok special') == 5


def test_a_text_that_spells_eos_is_no_eos():
    html = tokens({"tokens": ["</s>", "</s>"], "special": [False, True]}, "<s>", "</s>")
    assert html == (
        '<span class="tok">&lt;/s&gt;</span><span class="tok special end">&lt;/s&gt;</span>'
    )


def test_the_same_data_gives_the_same_bytes_that_name_no_address(folder, hostile):
    again = folder / "again.html"
    write_audit(again, example(count=8, glance=60, hostile=True, broken=True))
    assert again.read_bytes() == hostile.read_bytes()
    text = hostile.read_text(encoding="utf-8").replace("http-equiv", "")
    for word in ("http", "@import", "url(", "<link", "<img", "style="):
        assert word not in text, word
    assert [a.get("src") for a, _ in Reader(text).of("script") if "src" in a] == []
