"""data/split.py: no first human turn on both sides, whatever the format of the pairs.

python -m pytest tests/test_split.py
"""

import json
import random
from pathlib import Path

import pytest

from data import split
from data.pairs import Pair, first_turn, read_pairs, split_by_first_turn
from data.prompts import read_prompts
from data.split import at_most, main
from tests.conftest import ROOT

TRAIN = ROOT / "data" / "tiny" / "train.jsonl"


def transcript(turn: str, *more: str) -> dict:
    """HH: a first human turn, further turns, and two replies."""
    text = f"\n\nHuman: {turn}" + "".join(
        f"\n\n{name}: {said}" for name, said in zip(("Assistant", "Human") * 9, more, strict=False)
    )
    return {"chosen": f"{text}\n\nAssistant: yes", "rejected": f"{text}\n\nAssistant: no"}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[Pair]:
    return read_pairs(path, "dpo", log=lambda text: None)


@pytest.fixture
def conversations(tmp_path) -> str:
    """200 first turns, each begun once and, with white space around it, gone on with once."""
    rows = [transcript(f"q{i}") for i in range(200)]
    rows += [transcript(f" q{i} ", "a", "and?") for i in range(200)]
    return write(tmp_path / "hh.jsonl", rows)


def test_conversations_that_begin_alike_stay_on_one_side(conversations, tmp_path) -> None:
    out = tmp_path / "out"
    main(["--data", conversations, "--out", str(out), "--heldout", "0.25", "--prompts", "20"])
    training, held_out = read(out / "train.jsonl"), read(out / "eval.jsonl")
    sides = [{first_turn(pair) for pair in side} for side in (training, held_out)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 200
    assert len(training) == 2 * len(sides[0]) and len(held_out) == 2 * len(sides[1])
    assert 26 <= len(sides[1]) <= 74  # 50 within four standard deviations of 6.1
    prompts = read_prompts(out / "prompts.jsonl")
    asked = [prompt.messages[0]["content"].strip() for prompt in prompts]
    assert len(set(asked)) == 20 and set(asked) <= sides[1]


def test_prompts_that_say_nothing_at_their_end_are_not_drawn(tmp_path) -> None:
    """HH's with a blank last turn, one of two, are pairs to train on and no prompts to answer."""
    rows = [transcript(f"q{i}", *(("a", " ") if i % 2 else ())) for i in range(40)]
    main(["--data", write(tmp_path / "hh.jsonl", rows), "--out", str(tmp_path), "--heldout", "0.5"])
    held_out, prompts = read(tmp_path / "eval.jsonl"), read_prompts(tmp_path / "prompts.jsonl")
    assert 0 < len(prompts) < len(held_out)
    assert all(prompt.messages[-1]["content"].startswith("q") for prompt in prompts)


def test_what_is_read_is_not_overwritten(tmp_path, capsys) -> None:
    """A folder with a train.jsonl, split into itself."""
    rows = [transcript(f"q{i}") for i in range(20)]
    before = Path(write(tmp_path / "train.jsonl", rows)).read_bytes()
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path), "--out", str(tmp_path / ".." / tmp_path.name)])
    assert "would overwrite" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["train.jsonl"]
    assert (tmp_path / "train.jsonl").read_bytes() == before


def test_some_pairs_are_drawn_from_all_by_the_seed(conversations, tmp_path, monkeypatch) -> None:
    """Every one of ten can be among three; and of the same sides two seeds take other pairs."""
    drawn = [at_most(range(10), 3, random.Random(seed)) for seed in range(40)]
    assert {i for some in drawn for i in some} == set(range(10))
    assert all(len(set(some)) == 3 for some in drawn)
    monkeypatch.setattr(split, "split_by_first_turn", lambda pairs, *_: (pairs[:90], pairs[90:]))
    for seed in "01":
        flags = ["--data", conversations, "--pairs", "30", "--seed", seed]
        main([*flags, "--out", str(tmp_path / seed)])
    texts = [(tmp_path / seed / "train.jsonl").read_text() for seed in "01"]
    assert texts[0] != texts[1]


def test_a_side_depends_on_the_first_turn_and_the_seed_alone() -> None:
    pairs = [Pair(({"role": "user", "content": f"q{i}"},), "a", "b", "") for i in range(300)]
    _, few = split_by_first_turn(pairs[::3], 0.3, 0)
    _, all_of_them = split_by_first_turn(pairs, 0.3, 0)
    _, others = split_by_first_turn(pairs, 0.3, 1)
    assert few == [pair for pair in all_of_them if pair in pairs[::3]]
    assert others != all_of_them


def test_as_many_prompts_as_there_are_up_to_a_hundred(tmp_path) -> None:
    """Of 40 first turns all that are held out; of 400, half of them held out, 100."""
    for count, heldout in ((40, "0.1"), (400, "0.5")):
        data = write(tmp_path / "x.jsonl", [transcript(f"q{i}") for i in range(count)])
        main(["--data", data, "--out", str(tmp_path / "out"), "--heldout", heldout])
        held_out = len(read(tmp_path / "out" / "eval.jsonl"))
        assert 0 < held_out < 100 if count == 40 else held_out > 100
        assert len(read_prompts(tmp_path / "out" / "prompts.jsonl")) == min(100, held_out)


def test_bounds_and_the_same_bytes_again(conversations, tmp_path) -> None:
    flags = ["--data", conversations, "--pairs", "30", "--eval_pairs", "7", "--prompts", "5"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        main([*flags, "--seed", seed, "--out", str(tmp_path / name)])
    sizes = {"train": 30, "eval": 7, "prompts": 5}
    for name, size in sizes.items():
        a, b, c = ((tmp_path / d / f"{name}.jsonl").read_text() for d in "abc")
        assert a == b != c and len(a.splitlines()) == size


def test_rows_say_what_they_said_before(tmp_path) -> None:
    """Every format comes out as prompt (messages), chosen and rejected."""
    user, system = {"role": "user", "content": "q"}, {"role": "system", "content": "s"}
    reply = [{"role": "assistant", "content": text} for text in ("yes", "no")]
    rows = [
        transcript("q1", "a", "b"),
        {"prompt": "q2", "chosen": "yes", "rejected": "no"},
        {"chosen": [system, user, reply[0]], "rejected": [system, user, reply[1]]},
    ]
    for i, row in enumerate(rows):
        filler = [transcript(f"filler {i} {k}") for k in range(40)]
        data = write(tmp_path / f"{i}.jsonl", [row, *filler])
        main(["--data", data, "--out", str(tmp_path / str(i)), "--prompts", "1"])
        before = {(str(p.prompt), p.chosen, p.rejected) for p in read(Path(data))}
        parts = [read(tmp_path / str(i) / f"{side}.jsonl") for side in ("train", "eval")]
        assert {(str(p.prompt), p.chosen, p.rejected) for part in parts for p in part} == before


def test_prompts_take_turns(tmp_path) -> None:
    """Two human turns in a row are trained on, but not asked: some formats cannot say them."""
    rows = [transcript(f"q{i}") for i in range(40)]
    text = "\n\nHuman: a{0}\n\nHuman: b\n\nAssistant: "
    rows += [{"chosen": text.format(i) + "yes", "rejected": text.format(i) + "no"}
             for i in range(40)]  # fmt: skip
    data, out = write(tmp_path / "x.jsonl", rows), tmp_path / "out"
    main(["--data", data, "--out", str(out), "--heldout", "0.5", "--prompts", "8"])
    assert all(len(prompt.messages) == 1 for prompt in read_prompts(out / "prompts.jsonl"))
    assert any(len(pair.prompt) == 2 for pair in read(out / "eval.jsonl"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--heldout", "0"], "--heldout expects a share between 0 and 1, got 0.0"),
        (["--pairs", "0"], "--pairs expects 1 or more, got 0"),
        (["--heldout", "1e-9"], "--heldout 1e-09 leaves no held-out pairs of 6986"),
        (["--heldout", "0.01", "--prompts", "5000"], "--prompts expects at most "),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
    ],
)
def test_mistakes_end_with_one_message(flags, message, tmp_path, capsys) -> None:
    data = [] if "--data" in flags else ["--data", str(TRAIN)]
    with pytest.raises(SystemExit) as stop:
        main([*data, *flags, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_real_pairs(shared_data, tmp_path) -> None:
    """HH: 2184 first turns in 2323 pairs; UltraFeedback: none comes twice."""
    hh = [str(shared_data / "hh_rlhf" / f"{name}-base") for name in ("harmless", "helpful")]
    uf = [str(shared_data / "ultrafeedback_binarized" / "train_clean.jsonl.gz")]
    for data, pairs, turns in ((hh, 2323, 2184), (uf, 478, 478)):
        out = tmp_path / str(pairs)
        main(["--data", *data, "--out", str(out), "--prompts", "30"])
        training, held_out = read(out / "train.jsonl"), read(out / "eval.jsonl")
        sides = [{first_turn(pair) for pair in side} for side in (training, held_out)]
        assert len(training) + len(held_out) == pairs and not sides[0] & sides[1]
        assert len(sides[0]) + len(sides[1]) == turns
