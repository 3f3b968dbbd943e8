"""The command line: words to values, what beats what, and a message for every mistake.

pytest tests/test_config.py
"""

import dataclasses
import json
from dataclasses import dataclass

import pytest

import sample
import train
from eval import arithmetic, benchmark, gsm8k, humaneval, ifeval, math_problems, mmlu_pro
from model.config import field_comments, parse_config, to_json
from model.run import run_main


@dataclass(frozen=True)
class Example:
    """A configuration with one field of each kind."""

    steps: int = 3  # optimiser steps
    beta: float = 0.1  # weight of the reference
    name: str = "tiny"  # what it is called
    verbose: bool = False  # say more
    limit: int | None = None  # at most so many
    files: tuple[str, ...] = ("a",)  # what to read
    others: tuple[str, ...] | None = None  # what else to read
    prompt: str | None = None  # what to say


def test_defaults_then_file_then_flags(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"steps": 7, "beta": 1, "files": ["x", "y"], "_argv": ["train.py"]}))
    config = parse_config(Example, ["--config", str(file), "--steps", "9"])
    assert config == Example(steps=9, beta=1.0, files=("x", "y"))
    assert parse_config(Example, []) == Example()


def test_every_way_of_writing_a_flag():
    argv = "--steps=5 --beta 2e-3 --files a b c --verbose --limit 4 --name=a=b".split()
    assert parse_config(Example, argv) == Example(5, 2e-3, "a=b", True, 4, ("a", "b", "c"))
    argv = "--verbose false --limit none --beta -1".split()
    assert parse_config(Example, argv) == Example(beta=-1.0)


def test_none_is_a_value_of_what_may_be_none(tmp_path):
    """A run's files can be taken back; None with a capital is a text as any other."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"others": ["x"], "limit": 3}))
    argv = ["--config", str(file), "--others", "none", "--name", "none", "--prompt", "None"]
    assert parse_config(Example, argv) == Example(name="none", limit=3, prompt="None")
    assert parse_config(Example, ["--others", "none", "b"]).others == ("none", "b")
    assert parse_config(Example, ["--prompt=--help me"]).prompt == "--help me"


def test_round_trip(tmp_path):
    config = Example(steps=2, files=("p", "q"), limit=8)
    (tmp_path / "c.json").write_text(json.dumps(to_json(config)))
    assert parse_config(Example, ["--config", str(tmp_path / "c.json")]) == config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stesp", "3"], r"unknown flag --stesp \(did you mean --steps\?\)"),
        (["--steps", "3.5"], "--steps expects a whole number, got '3.5'"),
        (["--steps"], "--steps expects one value, got none; .* is written --flag=VALUE"),
        (["--prompt", "--help me"], "--prompt expects one value, got none"),
        (["--files"], "--files expects one or more values, got none"),
        (["--steps", "1", "2"], "--steps expects one value, got 2"),
        (["--beta", "x"], "--beta expects a number, got 'x'"),
        (["--beta", "nan"], "--beta expects a finite number"),
        (["--verbose", "maybe"], "--verbose expects true or false, got 'maybe'"),
        (["--files"], "--files expects one or more values"),
        (["train"], "expected a --flag, got 'train'"),
        (["--steps", "1", "--steps", "2"], "--steps is given twice"),
    ],
)
def test_mistakes_are_named(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_config(Example, argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file"),
        ("[]", "expected a JSON object, got list"),
        ('{"stesp": 1}', "unknown field 'stesp'"),
        ('{"steps": "1"}', "steps expects a whole number, got '1'"),
        ('{"steps": true}', "steps expects a whole number, got True"),
        ('{"files": [1]}', "files expects a list of texts"),
    ],
)
def test_mistakes_in_a_file_are_named(text, message, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_config(Example, ["--config", str(file)])
    with pytest.raises(FileNotFoundError, match="no such file"):
        parse_config(Example, ["--config", str(tmp_path / "nowhere.json")])


def test_help_is_the_comments(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(Example, ["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--beta [0.1]    weight of the reference" in out and "what to read" in out


@dataclass(frozen=True)
class Inherited(Example):
    """A field of its own, and two of Example's: another default, and another meaning too."""

    epochs: int = 1  # passes over the data
    steps: int = 9  # optimiser steps
    name: str = "big"  # what the larger one is called


def test_an_inherited_field_has_its_default_and_comment_where_they_were_written_last(capsys):
    with pytest.raises(SystemExit):
        parse_config(Inherited, ["--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[-9:] == [
        "--steps [9]    optimiser steps",
        "--beta [0.1]    weight of the reference",
        "--name [big]    what the larger one is called",
        "--verbose [False]    say more",
        "--limit [None]    at most so many",
        "--files [a]    what to read",
        "--others [None]    what else to read",
        "--prompt [None]    what to say",
        "--epochs [1]    passes over the data",
    ]
    assert field_comments(Example)["name"] == "what it is called"


SCRIPTS = [
    train.TrainConfig,
    sample.SampleConfig,
    benchmark.BenchmarkConfig,
    arithmetic.ArithmeticConfig,
    gsm8k.Gsm8kConfig,
    humaneval.HumanEvalConfig,
    ifeval.IfevalConfig,
    math_problems.MathConfig,
    mmlu_pro.MmluProConfig,
]


def test_every_flag_of_every_script_has_its_help():
    for script in SCRIPTS:
        comments = field_comments(script)
        assert comments.keys() == {field.name for field in dataclasses.fields(script)}
        assert all(len(comment) > 5 for comment in comments.values())


def test_a_users_mistake_is_one_message_and_exit_code_2(capsys):
    def fail() -> None:
        raise ValueError("expected this, got that")

    with pytest.raises(SystemExit) as stop:
        run_main(fail)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: expected this, got that\n"
