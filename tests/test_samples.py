"""Samples files against the plain generation, and against themselves after every interruption.

A file that was taken up, from whatever a kill has left of it, has to be byte for byte the file that
was written in one go. A small random model; ids stand for the text. pytest tests/test_samples.py
"""

import pytest
import torch

from data.rows import read_rows
from model import generate as generate_module
from model import samples
from model.generate import generate
from model.lora import add_lora
from model.samples import Drawing, write_samples
from model.sampling import Sampling, completion_seeds
from tests.test_generate import PROMPTS, random_model
from tests.test_lora import scatter

DRAWING = Drawing(n=2, max_new_tokens=20, sampling=Sampling(), seed=3, stop_ids=[5, 6])
CHANGES = {
    "n": 3,
    "max_new_tokens": 21,
    "sampling": Sampling(top_k=5),
    "seed": 4,
    "stop_ids": [5],
    "stop": ("7 7",),
}


def to_text(ids: list[int]) -> str:
    """Ends of line, also those that only some readers see, and letters of two and three bytes."""
    return " ".join(map(str, ids)) + "\né\u2028ア"


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def write(model, tmp_path):
    """The three prompts into a file of this name; out: the file."""

    def write(name: str, policy=None, text=to_text, drawing=DRAWING, prompts=PROMPTS, **options):
        out = tmp_path / "new" / name
        write_samples(policy or model, prompts, drawing, out, text, **options)
        return out

    return write


@pytest.fixture
def whole(write) -> bytes:
    """The file that is written in one go."""
    return write("whole").read_bytes()


@pytest.fixture
def drawn(monkeypatch) -> list[list[int]]:
    """The prompts that are given to `generate`, each as often as it has completions."""
    asked = []

    def spy(model, prompts, *args):
        asked.extend(prompts)
        return generate(model, prompts, *args)

    monkeypatch.setattr(samples, "generate", spy)
    return asked


# ------------------------------------------------------------------------------------------------
# rows


def test_rows_are_what_generate_draws(model, write):
    rows = [row for _, row in read_rows(write("a", records=[{"key": k} for k in "xyz"]))]
    for i, (row, prompt) in enumerate(zip(rows, PROMPTS, strict=True)):
        seeds = completion_seeds(3, i, 2)
        completions = dict(generate(model, [prompt] * 2, seeds, 20, Sampling(), [5, 6]))
        completions = [completions[0], completions[1]]
        assert list(row) == ["index", "key", "completions", "tokens", "logps", "finish_reasons"]
        assert (row["index"], row["key"]) == (i, "xyz"[i])
        assert row["completions"] == [to_text(c.ids) for c in completions]
        assert row["tokens"] == [len(c.ids) for c in completions]
        assert row["logps"] == [c.logps for c in completions]
        assert row["finish_reasons"] == [c.finish_reason for c in completions]


def test_a_row_is_in_the_file_as_soon_as_its_prompt_has_finished(write, tmp_path, monkeypatch):
    """One completion at a time: two texts are made for a row before the next row is there."""
    monkeypatch.setattr(generate_module, "MOST_ROWS", 1)
    counts = []

    def count_rows(ids: list[int]) -> str:
        counts.append((tmp_path / "new" / "a").read_bytes().count(b"\n"))
        return to_text(ids)

    write("a", text=count_rows)
    assert counts == [0, 0, 1, 1, 2, 2]


def test_prompts_that_finish_in_another_order_stand_in_theirs(write):
    """The second of the prompts fills the positions after one token, and finishes first."""
    prompts, order = [[1, 2], [1] * 399], []

    def note_row(ids: list[int]) -> str:
        order.append(len(ids))
        return to_text(ids)

    out = write("a", text=note_row, prompts=prompts)
    assert order[:2] == [1, 1] != order[2:]
    assert [row["index"] for _, row in read_rows(out)] == [0, 1]


def test_a_stop_rule_ends_completions(write):
    rows = read_rows(write("a", find_stop=lambda ids: len(ids) >= 3))
    assert all(count <= 3 for _, row in rows for count in row["tokens"])


def test_reference_logps_are_those_of_the_plain_forward(write):
    """In float64, and of the base model while an adapter draws."""
    policy, reference = random_model(torch.float64), random_model(torch.float64)
    add_lora(policy, rank=2, alpha=4.0)
    scatter(policy)
    out = write("a", policy, reference=reference)
    for (_, row), prompt in zip(read_rows(out), PROMPTS, strict=True):
        for k in range(2):
            ids = [int(id) for id in row["completions"][k].split("\n")[0].split()]
            for model, logps in ((policy, row["logps"]), (reference, row["reference_logps"])):
                logits = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]
                expected = logits.log_softmax(-1)[range(len(ids)), ids].sum().item()
                assert logps[k] == pytest.approx(expected, abs=1e-4)
        assert row["logps"] != pytest.approx(row["reference_logps"], abs=0.1)


# ------------------------------------------------------------------------------------------------
# taken up


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_an_interrupted_file_goes_on(write, whole, drawn, capsys, finished):
    """Ctrl-C comes while the text of the next row is made; less memory changes no byte."""
    texts = []

    def interrupt(ids: list[int]) -> str:
        if len(texts) == 2 * finished:
            raise KeyboardInterrupt
        texts.append(ids)
        return to_text(ids)

    with pytest.raises(SystemExit) as stop:
        write("a", text=interrupt)
    assert stop.value.code == 130
    assert f"stopped: {finished} of 3 rows are in" in capsys.readouterr().err
    drawn.clear()
    out = write("a", cache_bytes=1)
    assert out.read_bytes() == whole
    assert len(drawn) == 2 * (3 - finished)
    assert f"{finished} of 3 rows are there already" in capsys.readouterr().err


def test_a_file_that_is_whole_is_left_as_it_is(write, whole, drawn):
    assert write("whole").read_bytes() == whole and not drawn


@pytest.mark.parametrize("cut", [0, 40, -1, "é"])
def test_a_row_that_a_kill_has_cut_is_drawn_again(write, whole, drawn, cut):
    """Cut after so many bytes, before the last of them, or within a letter."""
    if isinstance(cut, str):
        cut = whole.rindex(cut.encode()) + 1
    write("a").write_bytes(whole[:cut])
    drawn.clear()
    left = whole[:cut].count(b"\n")
    assert write("a").read_bytes() == whole
    assert len(drawn) == 2 * (3 - left)


# ------------------------------------------------------------------------------------------------
# refused


@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_are_refused_by_name(write, name):
    out = write("a")
    before = out.read_bytes()
    changed = Drawing(**{**vars(DRAWING), name: CHANGES[name]})
    with pytest.raises(ValueError, match=rf"that were made otherwise \({name} .*, now ") as error:
        write("a", drawing=changed)
    assert ";" not in str(error.value).split(")")[0], "nothing else has changed"
    assert out.read_bytes() == before


def test_other_prompts_and_weights_are_refused_by_name(write):
    write("a")
    with pytest.raises(ValueError, match=r"\(prompts '\w+', now '\w+'\)"):
        write("a", prompts=[PROMPTS[0], PROMPTS[1], PROMPTS[2][1:]])
    with pytest.raises(ValueError, match=r"\(prompts '\w+', now '\w+'\)"):
        write("a", prompts=[PROMPTS[0] + PROMPTS[1], PROMPTS[2]])
    policy = random_model()
    add_lora(policy, rank=2, alpha=4.0)
    scatter(policy)
    with pytest.raises(ValueError, match=r"\(weights '\w+', now '\w+'\)"):
        write("a", policy)
    with pytest.raises(ValueError, match=r"\(reference_weights None, now '\w+'\)"):
        write("a", reference=random_model())
