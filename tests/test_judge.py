"""eval/judge.py: judgements are kept as they come, and nothing answered is asked again.

The judge is a scripted server on loopback, or the embedded model. A real process runs where it is
killed, and where all that it leaves is searched for the key.
python -m pytest tests/test_judge.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from data.rows import read_rows
from eval import endpoint, judge
from eval.judge import (
    JudgeConfig,
    check_baseline,
    check_config,
    read_instructions,
    read_judgements,
    read_problems,
    report_judged,
    show_dialogue,
)
from eval.results import json_digest
from tests.judge_server import MODEL, Answer, serve

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "data" / "tiny")
KEY = "sk-secret-0123456789"
QUESTIONS = [[{"role": "user", "content": f"question {i}"}] for i in range(6)]
SAID = ["1", "2", "3", "4", "5", "6"]


@pytest.fixture(autouse=True)
def plain(monkeypatch) -> None:
    """No proxy on the way, no key but the tests' own, and no pauses."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.0)


@pytest.fixture
def config(tmp_path) -> JudgeConfig:
    for name in ("data", "samples"):
        rows = [{"index": i, "prompt": f"p{i}", "completions": ["a", "b"]} for i in range(6)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    flags = {name: str(tmp_path / f"{name}.jsonl") for name in ("data", "samples")}
    return JudgeConfig(**flags, judge_name="judge-x", out=str(tmp_path / "new" / "out"))


def write_jsonl(path: Path, rows: Sequence[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def number(messages: Sequence[dict], _: int = 0) -> str:
    """A script: question i is answered with i + 1."""
    return str(int(messages[-1]["content"].split()[-1]) + 1)


def texts(judgements: Sequence[dict]) -> list[str]:
    return [judgement["text"] for judgement in judgements]


def rows_of(config: JudgeConfig, name: str) -> list[dict]:
    return [row for _, row in read_rows(Path(config.out) / name)]


# ------------------------------------------------------------------------------------------------
# an endpoint


def test_what_an_endpoint_leaves(config):
    with serve(number) as server:
        config = replace(config, judge_url=server.url)
        judgements = judge.judge(config, QUESTIONS)
    assert judgements == [{"text": t, "model": MODEL, "finish_reason": "stop"} for t in SAID]
    asked = [{"index": i, "messages": question} for i, question in enumerate(QUESTIONS)]
    assert rows_of(config, "questions.jsonl") == asked
    assert rows_of(config, "judgements.jsonl") == [
        {"index": i, "question": json_digest(question)} | judgement
        for i, (question, judgement) in enumerate(zip(QUESTIONS, judgements, strict=True))
    ]


def test_the_same_command_asks_only_what_is_missing(config):
    """The file as a kill would leave it: two rows and a piece of the third."""
    with serve(number) as server:
        config = replace(config, judge_url=server.url)
        judge.judge(config, QUESTIONS)
        file = Path(config.out) / "judgements.jsonl"
        whole = file.read_bytes()
        file.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]) + b'{"index": 2, "qu')
        server.asked.clear()
        assert texts(judge.judge(config, QUESTIONS)) == SAID
        assert server.asked == {f"question {i}": 1 for i in range(2, 6)}
        server.asked.clear()
        judge.judge(replace(config, judge_workers=1, judge_timeout=1.0), QUESTIONS)
        assert not server.asked and file.read_bytes() == whole
    with serve(number) as moved:  # a server that was started again may have another port
        assert texts(judge.judge(replace(config, judge_url=moved.url), QUESTIONS)) == SAID


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"judge_name": "other"}, "judge_name 'judge-x', now 'other'"),
        ({"judge_temperature": 0.5}, "temperature 0.0, now 0.5"),
        ({"judge_max_tokens": None}, "max_tokens 4096, now None"),
    ],
)
def test_judgements_of_another_judge_are_not_taken_up(config, changes, named):
    with serve(number) as server:
        config = replace(config, judge_url=server.url)
        judge.judge(config, QUESTIONS)
        with pytest.raises(ValueError, match=rf"made otherwise \({named}\)"):
            judge.judge(replace(config, **changes), QUESTIONS)
        with pytest.raises(ValueError, match=r"made otherwise \(questions '\w+', now '\w+'\)"):
            judge.judge(config, [*QUESTIONS[:5], QUESTIONS[0]])


def test_a_judge_with_bad_days(config):
    """Limits, time-outs, errors and half replies on the way: the same six texts."""
    held = threading.Event()
    bad = [
        Answer(b"slow down", 429, {"Retry-After": "0"}),
        Answer(b"oh", 500),
        Answer(b'{"choices": ['),
        Answer(b"<html>", 502),
    ]

    def script(messages: list[dict], attempt: int) -> str | Answer:
        i = int(messages[-1]["content"].split()[-1])
        if attempt == 0 and i == 5:
            held.wait(10)
        return bad[(i + attempt) % 4] if attempt < i else number(messages)

    with serve(script) as server:
        config = replace(config, judge_url=server.url, judge_timeout=0.3)
        assert texts(judge.judge(config, QUESTIONS)) == SAID
        held.set()
    assert server.asked == {f"question {i}": i + 1 for i in range(6)}


def test_a_failure_keeps_what_came(config):
    """Question 3 is refused: 0 to 2 are on the disk, and the same command goes on with 3."""
    broken = [True]

    def script(messages: list[dict], _: int) -> str | Answer:
        return (
            Answer(b"no", 400) if broken[0] and "3" in messages[-1]["content"] else number(messages)
        )

    with serve(script) as server:
        config = replace(config, judge_url=server.url, judge_workers=1)
        with pytest.raises(ValueError, match=r"HTTP 400: no\nwhat came is in .*; the same command"):
            judge.judge(config, QUESTIONS)
        assert [row["text"] for row in rows_of(config, "judgements.jsonl")] == SAID[:3]
        broken[0] = False
        server.asked.clear()
        assert texts(judge.judge(config, QUESTIONS)) == SAID
        assert server.asked == {f"question {i}": 1 for i in range(3, 6)}


def test_a_judge_that_stays_away(config, monkeypatch):
    monkeypatch.setattr(endpoint, "ATTEMPTS", 2)
    with serve(lambda *_: Answer(b"busy", 503)) as server:
        config = replace(config, judge_url=server.url)
        with pytest.raises(ConnectionError, match=r"HTTP 503: busy\n.* same command goes on"):
            judge.judge(config, QUESTIONS)


# ------------------------------------------------------------------------------------------------
# a process: killed, interrupted, searched for the key


def command(config: JudgeConfig, url: str) -> list[str]:
    answers = ["--samples", config.samples, "--baseline_answers", config.data]
    flags = ["--judge_url", url, "--judge_name", "x", "--judge_workers", "4"]
    run = [sys.executable, "-m", "eval.win_rate", "--data", config.data, "--out", config.out]
    return [*run, *answers, *flags]


def start(config: JudgeConfig, url: str, key: str = KEY) -> subprocess.Popen:
    environment = os.environ | {"OPENAI_API_KEY": key, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(config, url), cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_rows(process: subprocess.Popen, file: Path, rows: int) -> None:
    """Until as many judgements are on the disk."""
    while not file.exists() or file.read_bytes().count(b"\n") < rows:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


class Patience:
    """A script that answers 5 of 12 questions and holds the rest, until it is let go."""

    def __init__(self) -> None:
        self.left, self.lock, self.let_go = 5, threading.Lock(), threading.Event()

    def __call__(self, messages: list[dict], _: int) -> str:
        with self.lock:
            self.left -= 1
            held = self.left < 0
        if held:
            self.let_go.wait(60)
        a, b = len(messages[-1]["content"]) % 2, sum(map(ord, messages[-1]["content"])) % 2
        return f"I say [[{'AB'[a]}>{'>' * b}{'BA'[a]}]]"


def results(config: JudgeConfig) -> list:
    out = Path(config.out)
    files = [(out / name).read_bytes() for name in ("judgements.jsonl", "items.jsonl")]
    return [*files, json.loads((out / "summary.json").read_text())["metrics"]]


def test_killed_and_started_again(config, tmp_path):
    """Five of twelve games are answered and four are open when kill -9 comes.

    The second run asks the other seven once each, and leaves the bytes of an undisturbed run.
    """
    rows = [{"index": i, "completions": [f"{'answer ' * i}{i}"]} for i in range(6)]
    config = replace(config, samples=write_jsonl(tmp_path / "answers.jsonl", rows))
    patience, file = Patience(), Path(config.out) / "judgements.jsonl"
    with serve(patience) as server:
        process = start(config, server.url)
        wait_for_rows(process, file, 5)
        process.kill()
        process.communicate()
        kept = {json.loads(line)["index"] for line in file.read_text().splitlines()}
        patience.let_go.set()
        server.asked.clear()
        assert "5 of 12 rows are there already" in finish(start(config, server.url))
        games = [row["messages"][-1]["content"] for row in rows_of(config, "questions.jsonl")]
        assert len(kept) == 5 and len(set(games)) == 12
        assert server.asked == {game: 1 for i, game in enumerate(games) if i not in kept}
        whole = replace(config, out=str(tmp_path / "whole"))
        finish(start(whole, server.url))
    assert results(config) == results(whole)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert KEY not in out + err
    return out + err


def holds_key(path: Path) -> bool:
    return KEY.encode() in path.read_bytes()


def test_interrupted_while_it_waits(config):
    with serve(Patience()) as server:
        process = start(config, server.url)
        wait_for_rows(process, Path(config.out) / "judgements.jsonl", 5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped: 5 of 12 rows are in" in err and "Traceback" not in err


def test_the_key_goes_to_the_judge_and_nowhere_else(config, tmp_path):
    """An endpoint that repeats the key in its refusal, and one that repeats it in its judgement."""

    def script(messages: list[dict], _: int) -> str | Answer:
        return refusal[0] or f"Your key is {KEY}. [[A>B]]"

    refusal = [Answer(f"{KEY} is not known".encode(), 401)]
    with serve(script) as server:
        process = start(config, server.url, KEY + "\n")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 2 and "HTTP 401: [key] is not known" in err
        refusal[0] = None
        shown = out + err + finish(start(config, server.url))
        sent = {headers["Authorization"] for _, headers, _ in server.requests}
    assert sent == {f"Bearer {KEY}"} and KEY not in shown
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and holds_key(path)]
    assert "Your key is [key]" in (Path(config.out) / "judgements.jsonl").read_text()


# ------------------------------------------------------------------------------------------------
# a local model, a file


def test_a_local_judge(config):
    """The embedded model: greedy, the same again, and from where it was stopped."""
    config = replace(config, judge_name=None, judge_model=TINY, judge_max_tokens=8, device="cpu")
    judgements = judge.judge(config, QUESTIONS)
    assert {j["model"] for j in judgements} == {TINY} and len(set(texts(judgements))) > 1
    assert {j["finish_reason"] for j in judgements} <= {"stop", "length"}
    file = Path(config.out) / "judgements.jsonl"
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    assert judge.judge(config, QUESTIONS) == judgements and file.read_bytes() == whole
    with pytest.raises(ValueError, match=r"made otherwise \(max_new_tokens 8, now 9\)"):
        judge.judge(replace(config, judge_max_tokens=9), QUESTIONS)
    long = [[{"role": "user", "content": "so " * 3000}]]
    with pytest.raises(ValueError, match=r"question 0: .* tokens leave no room"):
        judge.judge(replace(config, out=config.out + "2"), long)


def test_a_local_judge_reads_its_instructions_in_any_format(config, tmp_path, monkeypatch):
    """Format plain has no system message, zephyr has one."""
    question = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "a or b?"}]
    config = replace(config, judge_name=None, judge_model=TINY, judge_max_tokens=2, device="cpu")
    shown = {"plain": "Human: Judge.\n\na or b?\n\nAssistant:",
             "zephyr": "<|system|>\nJudge."}  # fmt: skip
    asked = []
    drawn = judge.complete
    monkeypatch.setattr(judge, "complete", lambda m, p, *a: asked.append(p[0]) or drawn(m, p, *a))
    for name, text in shown.items():
        judge.judge(replace(config, judge_chat_format=name, out=str(tmp_path / name)), [question])
        assert text in judge.load_tokenizer(TINY).decode(asked[-1])


def test_a_template_that_is_not_known_asks_for_our_flag(config, tmp_path, capsys):
    """--judge_chat_format, which then takes the template's place."""
    folder = tmp_path / "judge"
    shutil.copytree(TINY, folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    config = replace(config, judge_name=None, judge_model=str(folder), device="cpu")
    with pytest.raises(ValueError, match=r"does not know; pass --judge_chat_format with the form"):
        judge.judge(config, QUESTIONS)
    assert not Path(config.out).exists()
    judge.judge(replace(config, judge_chat_format="zephyr", judge_max_tokens=2), QUESTIONS[:1])
    assert "chat format: zephyr (--judge_chat_format)" in capsys.readouterr().out


def test_questions_stay_those_of_the_judgements(config):
    """Fewer of them in the same folder are refused, and nothing there changes."""
    with serve(number) as server:
        config = replace(config, judge_url=server.url)
        judge.judge(config, QUESTIONS)
        before = (Path(config.out) / "questions.jsonl").read_bytes()
        with pytest.raises(ValueError, match="made otherwise"):
            judge.judge(config, QUESTIONS[:2])
    assert (Path(config.out) / "questions.jsonl").read_bytes() == before


def test_a_file_of_judgements(config, tmp_path):
    """Made elsewhere: in any order, more than are asked for, with or without their question."""
    rows = [{"index": i, "text": str(i + 1)} for i in range(7)][::-1]
    rows[3] |= {"question": json_digest(QUESTIONS[3]), "model": "m"}
    file = write_jsonl(tmp_path / "judgements.jsonl", rows)
    judgements = judge.judge(replace(config, judge_name=None, judgements=file), QUESTIONS)
    assert texts(judgements) == SAID
    assert judgements[3] == {"text": "4", "model": "m", "finish_reason": None}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"index": 5, "text": "x", "question": "0" * 64}, ":6: the judgement of another question"),
        ({"index": 4, "text": "x"}, ":6: expected an index not yet seen, got 4"),
        ({"index": "5", "text": "x"}, ":6: expected an index not yet seen, got '5'"),
        ({"index": 5}, ":6: text: expected a text, got null"),
        ({"index": 6, "text": "x"}, "no judgement for 1 of 6 questions, the first is 5"),
    ],
)
def test_judgements_that_do_not_fit(tmp_path, row, message):
    rows = [{"index": i, "text": "x"} for i in range(5)] + [row]
    with pytest.raises(ValueError, match=message):
        read_judgements(Path(write_jsonl(tmp_path / "j.jsonl", rows)), QUESTIONS)


def test_without_a_judge_the_questions_are_there(config):
    config = replace(config, judge_name=None)
    with pytest.raises(ValueError, match=r"got no judge; .*questions\.jsonl: answered elsewhere"):
        judge.judge(config, QUESTIONS)
    assert len(rows_of(config, "questions.jsonl")) == 6


# ------------------------------------------------------------------------------------------------
# flags, prompts, results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": None}, "--out expects a folder for the results, got none"),
        ({"data": None}, "--data expects a file, got None"),
        ({"samples": "no/file"}, "--samples expects a file, got no/file"),
        ({"judge_model": "x"}, "expected one of --judge_model, --judge_url and --judgements"),
        ({"limit": 0}, "--limit expects 1 or more, got 0"),
        ({"judge_workers": 0}, "--judge_workers expects 1 or more, got 0"),
        ({"judge_max_tokens": 0}, "--judge_max_tokens expects 1 or more, got 0"),
        ({"judge_timeout": 0.0}, "--judge_timeout expects a number above 0, got 0.0"),
        ({"cache_gb": -1.0}, "--cache_gb expects a number above 0, got -1.0"),
        ({"judge_temperature": -1.0}, "--judge_temperature expects 0 or more, got -1.0"),
        ({"dtype": "int8"}, "--dtype expects one of float32, .*, got 'int8'"),
        ({"judge_url": "host"}, "--judge_url expects http"),
        ({"judge_name": None}, "--judge_url needs --judge_name"),
        ({"judge_url": None}, "--judge_name is for --judge_url"),
        ({"judge_chat_format": "plain"}, "--judge_chat_format is for --judge_model"),
        ({"judge_key_variable": "MY_KEY"}, "the environment variable MY_KEY is not set"),
        ({"judge_url": None, "judge_name": None, "judge_model": "no"}, "--judge_model expects a f"),
        (
            {"judge_url": None, "judge_name": None, "judge_model": TINY, "judge_temperature": None},
            "--judge_temperature and --judge_max_tokens: none is for --judge_url",
        ),
        (
            {"judge_url": None, "judge_name": None, "judge_model": TINY, "shard": True},
            "--shard needs more than one rank",
        ),
    ],
)
def test_bad_flags(config, changes, message):
    good = replace(config, judge_url="http://127.0.0.1:1/v1")
    check_config(good)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_config(replace(good, **changes))


def test_keys_come_from_the_environment(config, monkeypatch):
    config = replace(config, judge_url="http://127.0.0.1:1/v1")
    assert judge.endpoint_of(config).key is None
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OTHER", KEY + "-other")
    assert judge.endpoint_of(config).key == KEY
    assert judge.endpoint_of(replace(config, judge_key_variable="OTHER")).key == KEY + "-other"
    assert judge.endpoint_of(replace(config, judge_key_variable=None)).key is None


def test_prompts(config, tmp_path):
    turns = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")]
    messages = [{"role": role, "content": content} for role, content in turns]
    rows = [{"uid": "x", "category": "c", "prompt": "p"}, {"prompt": messages}, {"question": "q"}]
    config = replace(config, data=write_jsonl(tmp_path / "d.jsonl", rows))
    nothing = {"uid": None, "category": None}
    dialogue = "System: s\n\nUser: u\n\nAssistant: a\n\nUser: v"
    assert read_problems(config) == [
        {"prompt": "p", "uid": "x", "category": "c"},
        {"prompt": dialogue} | nothing,
        {"prompt": "q"} | nothing,
    ]
    assert len(read_problems(replace(config, limit=2))) == 2
    assert show_dialogue(messages[:1]) == "s"
    write_jsonl(Path(config.data), [{"uid": ["x"], "prompt": "p"}])
    with pytest.raises(ValueError, match=r"d\.jsonl:1: uid: expected a text, got a list"):
        read_problems(config)
    Path(config.data).write_text("")
    with pytest.raises(ValueError, match="no prompt in it; pass --data FILE"):
        read_problems(config)


def test_instructions_from_a_file(tmp_path):
    file = tmp_path / "judge.txt"
    file.write_text(" Be strict.\n")
    assert read_instructions(str(file)) == "Be strict." and read_instructions(None) is None
    with pytest.raises(FileNotFoundError, match="--judge_prompt expects a text file, got no/file"):
        read_instructions("no/file")
    for data, message in ((b" \n", "got an empty file"), (b"\xff", "expected UTF-8")):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=f"--judge_prompt .*: .*{message}"):
            read_instructions(str(file))


def metrics_of(items: Sequence[dict], left_out: frozenset[int]) -> dict:
    return {"x": [1 * item["x"] for item in items if item["index"] not in left_out]}


def report_values(config: JudgeConfig, values: Sequence[float | None], **settings) -> dict:
    items = [{"index": i, "known": x is not None, "x": x} for i, x in enumerate(values)]
    settings = {"data_sha256": "d"} | settings
    check_baseline(config, "t", settings, len(items), metrics_of)
    said = [{"model": "m", "finish_reason": "stop"}] * len(items)
    report_judged(config, "t", settings, said, items, metrics_of)
    return json.loads((Path(config.out) / "summary.json").read_text())


def test_prompts_unknown_here_or_there_are_left_out_of_both(config, tmp_path):
    """0.1 and 0.2 are common to 0.1, 0.2, none, 0.9 and 0.5, 0.8, 0.3, none: 0.15 less 0.65."""
    there = replace(config, out=str(tmp_path / "there"))
    summary = report_values(there, [0.5, 0.8, 0.3, None])
    assert summary["metrics"]["x"]["value"] == pytest.approx(1.6 / 3)
    here = replace(config, baseline=there.out)
    summary = report_values(here, [0.1, 0.2, None, 0.9])
    assert summary["metrics"]["x"]["value"] == pytest.approx(0.15)
    assert summary["metrics"]["x - baseline"]["value"] == pytest.approx(-0.5)
    assert (summary["settings"]["left_out"], summary["settings"]["judges"]) == (2, ["m"])


def test_a_judge_without_a_name_is_unknown(config, capsys):
    said = [{"model": name, "finish_reason": None} for name in ("m", None)]
    items = [{"index": i, "known": True, "x": 0.5} for i in range(2)]
    report_judged(config, "t", {"data_sha256": "d"}, said, items, metrics_of)
    assert "judged by m, unknown;" in capsys.readouterr().out
    summary = json.loads((Path(config.out) / "summary.json").read_text())
    assert summary["settings"]["judges"] == ["m", "unknown"]


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("baseline_answers_sha256", "the same baseline_answers_sha256, got 1, now 2"),
        ("instructions_sha256", "the same instructions_sha256, got 1, now 2"),
        ("n", "the same n, got 1, now 2"),
        ("judge_name", "the same judge_name, got 1, now 2"),
        ("judge_model", "the same judge_model, got 1, now 2"),
    ],
)
def test_a_baseline_that_was_judged_otherwise_is_refused(config, tmp_path, key, named):
    there = replace(config, out=str(tmp_path / "there"))
    report_values(there, [0.5], **{key: 1})
    with pytest.raises(ValueError, match=f"--baseline .*: expected results with {named}"):
        report_values(replace(config, baseline=there.out), [0.5], **{key: 2})


def test_who_made_a_file_of_judgements_is_not_compared(config, tmp_path):
    there = replace(config, out=str(tmp_path / "there"))
    report_values(there, [0.5], judge_name="a")
    here = replace(config, baseline=there.out, judgements="file")
    assert "x - baseline" in report_values(here, [0.5], judge_name=None)["metrics"]
