"""eval/benchmark.py on a task made for it: numbers by hand, resumed runs, and every refusal.

The task asks for a word; its completions are scored from files written here, and drawn from the
embedded model. A real process runs where its exit code and its locale matter.
python -m pytest tests/test_benchmark.py
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier

import pytest

from data.rows import check_text, read_rows
from data.tokenizer import load_tokenizer
from eval import benchmark
from eval.benchmark import (
    GENERATION,
    BenchmarkConfig,
    Task,
    read_completions,
    read_problems,
    run_benchmark,
)
from model import samples as samples_module
from model.generate import generate

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "data" / "tiny")
PROBLEMS = [{"question": f"Say {word}!", "answer": word} for word in "abc"]
COMPLETIONS = [["a", "b"], ["b"], ["x", "y", "x"]]


def write_jsonl(path: Path, rows: Sequence[Mapping]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_samples(path: Path, completions: Sequence[list[str]]) -> str:
    rows = [{"index": i, "completions": texts} for i, texts in enumerate(completions)]
    return write_jsonl(path, rows)


def check_row(row: Mapping, where: str) -> dict:
    return {key: check_text(row.get(key), key, where) for key in ("question", "answer")}


def score_problem(problem: Mapping, texts: Sequence[str]) -> dict:
    return {"texts": list(texts), "correct": [text == problem["answer"] for text in texts]}


def metric_values(items: Sequence[Mapping]) -> dict:
    """right: of a problem; all_right: of a completion, each problem counts as often as it has."""
    marks = [item["correct"] for item in items]
    shares = [sum(row) / len(row) for row in marks]
    return {"right": shares, "all_right": list(zip(shares, map(len, marks), strict=True))}


def run(config: BenchmarkConfig, name: str = "word", raw: bool = False, stop: tuple = ()) -> list:
    problems = read_problems(config, check_row)
    prompts = [problem["question"] for problem in problems]
    return run_benchmark(
        config, Task(name, problems, prompts, raw, stop, score_problem, metric_values)
    )


def read_summary(config: BenchmarkConfig) -> dict:
    return json.loads((Path(config.out) / "summary.json").read_text())


@pytest.fixture
def data(tmp_path) -> str:
    return write_jsonl(tmp_path / "data.jsonl", PROBLEMS)


@pytest.fixture
def scoring(data, tmp_path) -> BenchmarkConfig:
    """Of COMPLETIONS."""
    samples = write_samples(tmp_path / "samples.jsonl", COMPLETIONS)
    return BenchmarkConfig(data=data, samples=samples, out=str(tmp_path / "new" / "out"))


@pytest.fixture
def drawing(data, tmp_path) -> BenchmarkConfig:
    """Of two completions of each problem from the embedded model."""
    return BenchmarkConfig(
        model=TINY, data=data, n=2, max_new_tokens=30, device="cpu", out=str(tmp_path / "drawn")
    )


# ------------------------------------------------------------------------------------------------
# by hand


def test_results_by_hand(scoring, capsys):
    """Shares right 1/2, 1 and 0: mean 1/2. Two of the six completions are right: 1/3.

    All three the second problem, or the third, in one of 27 resamples each, more than 1 in 40: the
    intervals go from 0 to 1.
    """
    items = run(scoring)
    assert items == [
        {"index": 0, "texts": ["a", "b"], "correct": [True, False]},
        {"index": 1, "texts": ["b"], "correct": [True]},
        {"index": 2, "texts": ["x", "y", "x"], "correct": [False] * 3},
    ]
    lines = (Path(scoring.out) / "items.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == items
    summary = read_summary(scoring)
    assert (summary["task"], summary["problems"]) == ("word", 3)
    assert summary["metrics"] == {
        "right": pytest.approx({"value": 1 / 2, "low": 0, "high": 1}),
        "all_right": pytest.approx({"value": 1 / 3, "low": 0, "high": 1}),
    }
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["value", "low", "high"]
    assert shown[1].split() == ["right", "0.5000", "0.0000", "1.0000"]
    assert shown[2].split() == ["all_right", "0.3333", "0.0000", "1.0000"]
    assert shown[3].startswith("3 problems, 95% intervals over problems; details in ")


def test_settings_are_the_flags_and_what_was_read(scoring, capsys):
    """How completions made elsewhere were drawn is not known here, whatever the flags say.

    How many there are is: 1, of the second problem, which has the fewest. The flags are named, but
    not the device.
    """
    run(replace(scoring, n=7, temperature=0.5, device="cpu"))
    shown = capsys.readouterr().out.splitlines()[0]
    assert shown == "--samples are scored as they are, without --n, --temperature"
    settings = read_summary(scoring)["settings"]
    assert settings.pop("n") == 1
    assert {settings.pop(name) for name in GENERATION if name in settings} == {None}
    assert settings == {
        "samples": scoring.samples,
        "data": scoring.data,
        "limit": None,
        "out": scoring.out,
        "baseline": None,
        "data_sha256": hashlib.sha256(Path(scoring.data).read_bytes()).hexdigest(),
        "samples_sha256": hashlib.sha256(Path(scoring.samples).read_bytes()).hexdigest(),
    }


def test_rows_of_samples_may_come_in_any_order(scoring):
    lines = Path(scoring.samples).read_text().splitlines(keepends=True)
    items = run(scoring)
    Path(scoring.samples).write_text("".join([lines[2], lines[0], lines[1]]))
    assert run(scoring) == items
    assert run(replace(scoring, limit=2)) == items[:2]  # the third row is of no problem here


def test_samples_are_cut_at_the_stops_of_the_task(scoring):
    write_samples(Path(scoring.samples), [["a Q: b", "a"], ["\u2028bA:Q:"], ["Q:c"]])
    items = run(scoring, stop=("Q:", "A:"))
    assert [item["texts"] for item in items] == [["a ", "a"], ["\u2028b"], [""]]


def test_differences_from_a_baseline_by_hand(scoring, tmp_path):
    """Shares right 0, 1, 1/3 there and 1/2, 1, 0 here: differences 1/2, 0, -1/3, mean 1/18.

    Times 2, 1 and 3 completions they are 1, 0 and -1: nothing. All of one problem is in one of 27
    resamples, so that the intervals go from -1/3 to 1/2.
    """
    write_samples(tmp_path / "theirs.jsonl", [["b", "b"], ["b"], ["x", "y", "c"]])
    theirs = replace(scoring, samples=str(tmp_path / "theirs.jsonl"), out=str(tmp_path / "theirs"))
    run(theirs)
    run(replace(scoring, baseline=theirs.out))
    metrics = read_summary(scoring)["metrics"]
    assert list(metrics) == ["right", "all_right", "right - baseline", "all_right - baseline"]
    expected = {"value": 1 / 18, "low": -1 / 3, "high": 1 / 2}
    assert metrics["right - baseline"] == pytest.approx(expected)
    expected["value"] = 0
    assert metrics["all_right - baseline"] == pytest.approx(expected, abs=1e-15)


def test_exemplars_of_samples_are_not_known(scoring):
    """Only where the task has such a flag."""

    @dataclass(frozen=True)
    class WithShots(BenchmarkConfig):
        shots: int = 5

    flags = {name: getattr(scoring, name) for name in ("data", "samples", "out")}
    run(WithShots(**flags))
    settings = read_summary(scoring)["settings"]
    assert settings["shots"] is None and "validation" not in settings

    @dataclass(frozen=True)
    class WithValidation(WithShots):
        validation: str | None = None

    run(WithValidation(validation="v.jsonl", **flags))
    assert read_summary(scoring)["settings"]["validation"] is None


def test_problems_are_scored_at_a_time(scoring):
    """Three at once: each waits for the others; the items stand in the order of the problems."""
    barrier = Barrier(3, timeout=60)

    def score(problem: Mapping, texts: Sequence[str]) -> dict:
        barrier.wait()
        return score_problem(problem, texts)

    problems = read_problems(scoring, check_row)
    task = Task("word", problems, ["?"] * 3, False, (), score, metric_values, workers=3)
    assert [item["texts"] for item in run_benchmark(scoring, task)] == COMPLETIONS


def test_a_baseline_of_another_number_of_completions_is_refused(scoring, drawing, tmp_path):
    """2 of each there; 1 here, the fewest of a problem, or 3 to be drawn: none is drawn then."""
    write_samples(tmp_path / "theirs.jsonl", [["b", "b"], ["b", "a"], ["x", "y"]])
    theirs = replace(scoring, samples=str(tmp_path / "theirs.jsonl"), out=str(tmp_path / "theirs"))
    run(theirs)
    for other, n in ((scoring, 1), (replace(drawing, n=3), 3)):
        message = rf"--baseline .*theirs: expected {n} completions .* as here, got 2; "
        with pytest.raises(ValueError, match=message):
            run(replace(other, baseline=theirs.out))
        assert not Path(other.out).exists()


# ------------------------------------------------------------------------------------------------
# drawn here


@pytest.fixture
def drawn(monkeypatch) -> list[list[int]]:
    """The prompts that are given to `generate`, one for each completion."""
    prompts = []

    def spy(model, asked, *args):
        prompts.extend(asked)
        return generate(model, asked, *args)

    monkeypatch.setattr(samples_module, "generate", spy)
    return prompts


def read_texts(config: BenchmarkConfig) -> list[str]:
    rows = [row for _, row in read_rows(Path(config.out) / "samples.jsonl")]
    return [text for row in rows for text in row["completions"]]


def test_completions_end_before_a_stop_text(drawing, tmp_path):
    """The same draws with and without it: what stands before the stop is the same text."""
    run(drawing)
    stopped = replace(drawing, out=str(tmp_path / "stopped"))
    items = run(stopped, stop=("=", "e"))
    free = read_texts(drawing)
    wanted = [text.split("=")[0].split("e")[0] for text in free]
    assert read_texts(stopped) == wanted == [text for item in items for text in item["texts"]]
    assert sum(one != other for one, other in zip(free, wanted, strict=True)) > 3
    lengths = [
        [n for _, row in read_rows(Path(config.out) / "samples.jsonl") for n in row["tokens"]]
        for config in (drawing, stopped)
    ]
    assert sum(lengths[1]) < sum(lengths[0])
    settings = read_summary(stopped)["settings"]
    assert (settings["n"], settings["model"], settings["max_new_tokens"]) == (2, TINY, 30)


def test_the_same_command_draws_nothing_again(drawing, drawn):
    items = run(drawing)
    file, summary = Path(drawing.out) / "samples.jsonl", read_summary(drawing)
    before = file.read_bytes()
    assert len(drawn) == 6
    drawn.clear()
    assert run(drawing) == items and read_summary(drawing) == summary
    assert file.read_bytes() == before and not drawn

    file.write_bytes(before[: before.index(b"\n") + 9])  # as a kill would leave it
    assert run(drawing) == items
    assert file.read_bytes() == before and len(drawn) == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n": 3}, r"\(n 2, now 3\)"),
        ({"max_new_tokens": 31}, r"\(max_new_tokens 30, now 31\)"),
        ({"seed": 1}, r"\(seed 0, now 1\)"),
        ({"temperature": 0.5}, r"\(sampling .*'temperature': 1.0.*, now .*'temperature': 0.5"),
        ({"dtype": "bfloat16"}, r"\(weights '\w+', now '\w+'\)"),
        ({"limit": 2}, r"\(prompts '\w+', now '\w+'\)"),
        ({"chat_format": "zephyr"}, r"\(prompts '\w+', now '\w+'\)"),
    ],
)
def test_other_flags_are_refused_where_there_are_samples(drawing, drawn, changes, named):
    run(drawing)
    before = (Path(drawing.out) / "samples.jsonl").read_bytes()
    drawn.clear()
    with pytest.raises(ValueError, match=rf"samples.jsonl holds .* made otherwise {named}"):
        run(replace(drawing, **changes))
    assert (Path(drawing.out) / "samples.jsonl").read_bytes() == before and not drawn


@pytest.mark.parametrize("raw", [True, False])
def test_a_raw_prompt_is_continued_and_another_is_a_message(drawing, drawn, raw):
    """The embedded model has no template: the plain format writes Human and Assistant."""
    run(replace(drawing, limit=1, n=1), raw=raw)
    tokenizer = load_tokenizer(TINY)
    written = "Say a!" if raw else "\n\nHuman: Say a!\n\nAssistant:"
    assert drawn == [[tokenizer.bos_id, *tokenizer.encode(written)]]


# ------------------------------------------------------------------------------------------------
# refused


BAD_FLAGS = [
    ({"out": None}, "--out expects a folder for the results, got none"),
    ({"model": None}, "expected either --model to sample from, or --samples to score"),
    ({"samples": "x"}, "expected either --model to sample from, or --samples to score"),
    ({"model": None, "samples": "x", "adapter": "y"}, "--adapter needs --model"),
    ({"model": None, "samples": "no/file"}, "--samples expects a file, got no/file"),
    ({"model": "no/folder"}, "--model expects a folder with config.json, got no/folder"),
    ({"baseline": "no/folder"}, "--baseline expects the results folder of an earlier run; no/"),
    ({"n": 0}, "--n expects 1 or more, got 0"),
    ({"max_new_tokens": 0}, "--max_new_tokens expects 1 or more, got 0"),
    ({"temperature": -1.0}, "--temperature expects 0 .*, got -1"),
    ({"top_k": -1}, r"--top_k expects 0 \(all tokens\) or more, got -1"),
    ({"top_p": 0.0}, r"--top_p expects a number in \(0, 1\], got 0"),
    ({"min_p": 2.0}, r"--min_p expects a number in \[0, 1\], got 2"),
    ({"seed": -1}, "--seed expects a number from 0 to"),
    ({"cache_gb": 0.0}, "--cache_gb expects a number above 0, got 0.0"),
    ({"dtype": "int8"}, "--dtype expects one of float32, .*, got 'int8'"),
    ({"device": "tpu"}, "--device tpu cannot be used"),
    ({"chat_format": "x"}, "--chat_format: expected one of .*, got 'x'"),
    ({"shard": True}, "--shard needs more than one rank"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_FLAGS)
def test_bad_flags_stop_before_a_model_is_loaded(drawing, monkeypatch, changes, message):
    monkeypatch.setattr(benchmark, "load_policy", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(replace(drawing, **changes))
    assert not Path(drawing.out).exists()


def test_a_chat_format_is_refused_for_a_raw_prompt(drawing):
    with pytest.raises(ValueError, match="--chat_format zephyr has no meaning for a raw prompt"):
        run(replace(drawing, chat_format="zephyr"), raw=True)


def test_a_prompt_that_leaves_no_room_is_named(drawing):
    long = {"question": "so " * 3000, "answer": "a"}
    write_jsonl(Path(drawing.data), [PROBLEMS[0], long])
    with pytest.raises(ValueError, match=r"data\.jsonl, problem 1: .* leave no room"):
        run(drawing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "expected results of other on the same problems"),
        ({"limit": 2}, r"on the same problems \(2 of --data\), got word on 3"),
        ({"data": [*PROBLEMS[:2], {"question": "Say d!", "answer": "d"}]}, "or of another file"),
        (
            {"items.jsonl": "{}\n" * 3},
            r"items\.jsonl: not the items of an earlier run: .*'correct'",
        ),
    ],
)
def test_a_baseline_that_is_none_is_refused(scoring, tmp_path, change, message):
    run(scoring)
    [(key, value)] = change.items()
    if key == "data":
        write_jsonl(Path(scoring.data), value)
    elif key == "items.jsonl":
        (Path(scoring.out) / key).write_text(value)
    flags = {key: value} if key == "limit" else {}
    other = replace(scoring, out=str(tmp_path / "other"), baseline=scoring.out, **flags)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(other, name=value if key == "name" else "word")
    assert not Path(other.out).exists()


def test_problems_are_the_first_rows_as_the_task_reads_them(data):
    def check(row: Mapping, where: str) -> dict:
        return {"where": where.rpartition("/")[2], "word": row["answer"]}

    rows = read_problems(BenchmarkConfig(data=data, limit=2), check)
    assert rows == [
        {"where": "data.jsonl:1", "word": "a"},
        {"where": "data.jsonl:2", "word": "b"},
    ]
    assert len(read_problems(BenchmarkConfig(data=data, limit=9), check)) == 3


@pytest.mark.parametrize(
    ("text", "limit", "message"),
    [
        ('{"question": "x", "answer": "y"}\n{"question": 3}\n', None, "d:2: question: expected"),
        ("\n", None, "d: no problem in it"),
        ('{"question": "x", "answer": "y"}\n', 0, "no problem in it; .* or a larger --limit"),
        ("x\n", None, "d:1: not JSON"),
    ],
)
def test_problems_that_are_none_are_named(tmp_path, text, limit, message):
    (tmp_path / "d").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_problems(BenchmarkConfig(data=str(tmp_path / "d"), limit=limit), check_row)


def test_a_file_of_problems_has_to_be_there():
    with pytest.raises(ValueError, match="--data expects a file of problems, got none"):
        read_problems(BenchmarkConfig(), check_row)
    with pytest.raises(FileNotFoundError, match="--data expects a file, got no/file"):
        read_problems(BenchmarkConfig(data="no/file"), check_row)


GOOD = '{"index": 0, "completions": ["a"]}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + GOOD, "s:2: expected an index not yet seen, got 0"),
        ('{"index": -1, "completions": ["a"]}\n', "s:1: expected an index not yet seen, got -1"),
        ('{"index": true, "completions": ["a"]}\n', "s:1: expected an index .*, got True"),
        ('{"completions": ["a"]}\n', "s:1: expected an index not yet seen, got None"),
        ('{"index": 0}\n', "s:1: expected `completions`, a list of texts"),
        ('{"index": 0, "completions": []}\n', "s:1: expected `completions`, a list of texts"),
        ('{"index": 0, "completions": "a"}\n', "s:1: expected `completions`, a list of texts"),
        (
            '{"index": 0, "completions": ["a", null]}\n',
            r"s:1: completions\[1\]: expected a text, got null",
        ),
        (
            GOOD + '{"index": 1, "completions": ["\\ud83d"]}\n',
            r"s:2: completions\[0\]: not Unicode, half a surrogate pair",
        ),
        (GOOD, "s: no completions for 2 of 3 problems, the first is 1; pass the --data"),
        ("3\n", "s:1: expected an object"),
    ],
)
def test_completions_that_are_none_are_named(tmp_path, text, message):
    (tmp_path / "s").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_completions(tmp_path / "s", 3, ())


# ------------------------------------------------------------------------------------------------
# a real process


def run_command(task: str, *words: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"eval.{task}", *words]
    env = os.environ | env
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data {data} --model {tiny}", "--out expects a folder for the results, got none"),
        ("--data {data} --out {out}", "expected either --model to sample from, or --samples to"),
        ("--data {data} --out {out} --model {tiny} --top_p 2", "--top_p expects a number in (0, 1"),
        ("--out {out} --model {tiny}", "--data expects a file of problems, got none"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(tmp_path, flags, message):
    data = write_jsonl(tmp_path / "gsm8k.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    words = flags.format(data=data, tiny=TINY, out=tmp_path / "out").split()
    done = run_command("gsm8k", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_results_are_utf_8_in_any_locale(tmp_path):
    """Where text files are ASCII by default, an answer may still hold other letters."""
    row, out = {"problem": "Angle?", "answer": "ß"}, tmp_path / "out"
    data = write_jsonl(tmp_path / "math.jsonl", [row])
    samples = write_samples(tmp_path / "samples.jsonl", [["\\boxed{ß}", "\\boxed{é}"]])
    done = run_command(
        "math_problems", "--data", data, "--samples", samples, "--out", str(out),
        LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    item = json.loads((out / "items.jsonl").read_text(encoding="utf-8"))
    assert (item["answers"], item["correct"]) == (["ß", "é"], [True, False])
