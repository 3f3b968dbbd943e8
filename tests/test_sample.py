"""sample.py from the command line: what is read, what is written, and what is refused.

On a random model with a sentencepiece tokenizer trained here, and on stories260k where it is. What
is drawn is compared with model/generate.py, whose own tests say that it is right; a merged model
with transformers'. pytest tests/test_sample.py
"""

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers

import sample
from data.chat import CHAT_FORMATS, bind_tokens
from data.tokenizer import load_tokenizer
from model import samples
from model.adapter import save_adapter
from model.checkpoint import init_weights, load_model, save_model
from model.generate import generate
from model.lora import add_lora, lora_layers
from model.reference import hash_weights
from model.sampling import Sampling, completion_seeds
from model.transformer import ModelConfig, Transformer

ROOT = Path(__file__).resolve().parents[1]
TEXT = [
    "Tom has 3 apples and Lily has 4.",
    "How many do they have? 3 + 4 = 7",
    "ça va, größer, 東京",
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A model that writes anything: random weights, 300 pieces with byte fallback."""
    folder = tmp_path_factory.mktemp("model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    config = ModelConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=120,
        initializer_range=0.3,
    )
    model = Transformer(config)
    init_weights(model, 0)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    save_model(model, folder, tokenizer.files, bos_token_id=1, eos_token_id=2)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """sample.py in this process: run("--n", 2, ...) -> what it printed to standard output."""

    def run(*args: object, stdin: bytes | None = None) -> str:
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, args)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        sample.main()
        return capsys.readouterr().out

    return run


def read_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# ------------------------------------------------------------------------------------------------
# results


def test_results_are_those_of_generate(folder, run, tmp_path):
    """Two prompts, three completions: every field of the file against a call of generate."""
    prompts, out = ["Tom has 3", "apples"], tmp_path / "new" / "samples.jsonl"
    (tmp_path / "prompts.txt").write_text("Tom has 3\n\napples\r\n")
    flags = ("--n", 3, "--seed", 7, "--top_k", 50, "--max_new_tokens", 40, "--chat_format", "none")
    printed = run("--model", folder, "--prompts", tmp_path / "prompts.txt", "--out", out, *flags)
    assert printed == ""

    model, tokenizer = load_model(folder), load_tokenizer(folder)
    rows = read_lines(out.read_text())
    assert [row["index"] for row in rows] == [0, 1]
    assert [row["prompt"] for row in rows] == prompts
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        seeds, sampling = completion_seeds(7, i, 3), Sampling(top_k=50)
        by_number = dict(generate(model, [ids] * 3, seeds, 40, sampling, [tokenizer.eos_id]))
        drawn = [by_number[number] for number in range(3)]
        assert row["completions"] == [tokenizer.decode_continuation(c.ids) for c in drawn]
        assert row["tokens"] == [len(c.ids) for c in drawn]
        assert row["logps"] == [c.logps for c in drawn]
        assert row["finish_reasons"] == [c.finish_reason for c in drawn]
    few = run("--model", folder, "--prompt", "Tom has 3", *flags[2:], "--n", 2)
    assert read_lines(few)[0]["completions"] == rows[0]["completions"][:2]


def test_standard_input_has_a_prompt_a_line(folder, run):
    args = ("--model", folder, "--max_new_tokens", 5)
    rows = read_lines(run(*args, stdin="Tom\n\n東京\n".encode()))
    assert [(row["index"], row["prompt"]) for row in rows] == [(0, "Tom"), (1, "東京")]
    one = run(*args, stdin=b"Tom\n")
    assert one == rows[0]["completions"][0] + "\n"  # a single completion is plain text


def test_a_single_completion_is_streamed(folder, run, monkeypatch):
    """Written in pieces, each a text that stays: together the completion of the results."""
    args = ("--model", folder, "--prompt", "Lily", "--max_new_tokens", 60)
    pieces = []
    write = sample.Printer.write
    monkeypatch.setattr(
        sample.Printer, "write", lambda self, text: pieces.append(text) or write(self, text)
    )
    printed = run(*args)
    row = read_lines(run(*args, "--n", 2))[0]
    assert printed == row["completions"][0] + "\n"
    assert len(pieces) > 30 and all(pieces[-1].startswith(piece) for piece in pieces)


def test_a_stop_string_ends_the_text_before_it(folder, run):
    args = ("--model", folder, "--prompt", "Lily", "--max_new_tokens", 60, "--n", 2)
    free = read_lines(run(*args))[0]
    text = free["completions"][0]
    stop = text[len(text) // 2 :][:3]  # across tokens
    assert stop.strip()
    stopped = read_lines(run(*args, "--stop", "never there", stop))[0]
    assert stopped["completions"][0] == text[: text.index(stop)]
    assert stopped["finish_reasons"][0] == "stop"
    assert stopped["tokens"][0] < free["tokens"][0]
    assert run(*args[:-2], "--stop", stop) == stopped["completions"][0] + "\n"


def test_the_printer_holds_back_what_may_become_a_stop_string(folder):
    """With the stop string "3 +": "3 " is held back, and given out when 4 follows."""
    tokenizer = load_tokenizer(folder)
    config = sample.SampleConfig(stop=("3 +",))
    chat_format = bind_tokens(CHAT_FORMATS["none"], tokenizer)
    sampler = sample.Sampler(None, tokenizer, chat_format, config, Sampling())
    file = io.StringIO()
    printer = sample.Printer(sampler, file)
    seen = []
    for token in tokenizer.encode_continuation("x 3 4 東") + tokenizer.encode_continuation("3 + 4"):
        printer.add([0], torch.tensor([token]))
        seen.append(file.getvalue())
    assert not any("3 +" in text or "\ufffd" in text for text in seen)
    assert "x " in seen and "x 3 4 東" in seen and "x 3" not in seen
    assert printer.finish() == "x 3 4 東" and file.getvalue() == "x 3 4 東\n"


# ------------------------------------------------------------------------------------------------
# prompts


def test_a_bad_prompt_leaves_earlier_results_alone(folder, run, tmp_path):
    """The second line is longer than the model's context: found before anything is written."""
    prompts, out = tmp_path / "p.txt", tmp_path / "out.jsonl"
    prompts.write_text("a\n" + "b " * 300)
    out.write_text("earlier")
    with pytest.raises(ValueError, match=r"p.txt:2: .* no room .* the model's 120 positions"):
        run("--model", folder, "--prompts", prompts, "--out", out)
    assert out.read_text() == "earlier"


BAD_FLAGS = [
    (("--temperature", "-1"), "--temperature expects 0"),
    (("--top_p", "0"), "--top_p expects"),
    (("--n", "0"), "--n expects 1 or more"),
    (("--max_new_tokens", "0"), "--max_new_tokens expects 1 or more"),
    (("--seed", "-1"), "--seed expects"),
    (("--cache_gb", "0"), "--cache_gb expects"),
    (("--stop", ""), "--stop expects"),
    (("--dtype", "int8"), "--dtype expects one of float32, bfloat16, float16"),
    (("--device", "abacus"), "--device abacus"),
    (("--chat_format", "morse"), "--chat_format: expected one of zephyr"),
    (("--prompts", "p.txt"), "--prompt and --prompts exclude each other"),
    (("--merge_to", "somewhere"), "pass --adapter"),
    (("--merge_to", "x", "--adapter", "y", "--dtype", "bfloat16"), "needs --dtype float32"),
    (("--adapter", "nowhere"), "nowhere"),
    (("--model", "nowhere"), "--model expects a folder"),
    (("--out", "."), "--out expects a file"),
    (("--system", "Be brief."), "--prompt: chat format plain has no system message"),
]


@pytest.mark.parametrize("flags, message", BAD_FLAGS, ids=lambda x: str(x)[:30])
def test_bad_flags_are_named(folder, run, flags, message):
    model = () if "--model" in flags else ("--model", folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(*model, "--prompt", "Hi", *flags)


def test_no_prompt_at_all(folder, run, monkeypatch):
    with pytest.raises(ValueError, match="standard input has no prompt"):
        run("--model", folder, stdin=b" \n")
    monkeypatch.setattr("model.parallel.world_size", lambda: 2)
    with pytest.raises(ValueError, match="share one standard input; pass --prompts FILE"):
        run("--model", folder, "--out", "x.jsonl", stdin=b"Tom\n")


# ------------------------------------------------------------------------------------------------
# adapters


def test_an_adapter_is_merged_and_saved(folder, run, tmp_path):
    """--merge_to writes a folder that --model and transformers load, with the same numbers."""
    model = load_model(folder)
    add_lora(model, rank=2, alpha=8, seed=3)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.2, generator=torch.Generator().manual_seed(4))
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    save_adapter(model, adapter, str(folder))

    assert run("--model", folder, "--adapter", adapter, "--merge_to", merged) == ""
    args = ("--prompt", "Tom", "--max_new_tokens", 20)
    text = run("--model", folder, "--adapter", adapter, *args)
    assert text == run("--model", merged, *args)
    assert text != run("--model", folder, *args)
    other = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 9, 200]])
    torch.testing.assert_close(other(ids).logits, model(ids), rtol=0, atol=1e-4)
    assert (other.config.bos_token_id, other.config.eos_token_id) == (1, 2)
    with pytest.raises(ValueError, match="expects a new folder"):
        run("--model", folder, "--adapter", adapter, "--merge_to", folder)


# ------------------------------------------------------------------------------------------------
# at the terminal


def launch(*args: object, **options) -> subprocess.Popen:
    command = [sys.executable, "sample.py", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TERM": "dumb"}, **options)


def test_a_story_from_the_command_line(stories_dir):
    """One greedy completion; and a mistake: its message alone and exit code 2."""
    args = ("--model", stories_dir, "--chat_format", "none", "--prompt", "Once upon a time")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    good = launch(*args, "--temperature", 0, "--max_new_tokens", 30, **pipes)
    bad = launch(*args, "--temperature", "hot", **pipes)
    out, err = good.communicate()
    assert good.returncode == 0 and out.startswith(", there was a little girl named Lily.")
    assert "chat format: none (" in err
    out, err = bad.communicate()
    assert (bad.returncode, out) == (2, "")
    assert err == "error: --temperature expects a number, got 'hot'\n"


def test_a_reader_may_go_away(folder, tmp_path):
    """`| head -1`: what is left is not printed, nobody complains, and the code is a shell's own."""
    (tmp_path / "p.txt").write_text("Tom\n" * 400)
    args = ("--model", folder, "--prompts", tmp_path / "p.txt", "--max_new_tokens", 60)
    process = launch(*args, "--n", 2, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = json.loads(process.stdout.readline())
    process.stdout.close()
    error = process.stderr.read().decode()
    process.wait()
    assert first["index"] == 0
    assert "Traceback" not in error and "BrokenPipe" not in error, error
    assert process.returncode == 141  # 128 and SIGPIPE


def test_a_chat_at_the_terminal(folder):
    """Two turns and /exit, through a pseudo-terminal."""
    terminal, end = pty.openpty()
    process = launch("--model", folder, "--max_new_tokens", 5, stdin=end, stdout=end, stderr=end)
    os.close(end)
    shown = read_until(terminal, "> ")
    assert "/exit ends the chat" in shown
    os.write(terminal, b"Tom\n")
    shown = read_until(terminal, "\n> ")
    assert shown.startswith("Tom\r\n")
    os.write(terminal, b"\n/exit\n")
    assert process.wait(timeout=20) == 0
    os.close(terminal)


def read_until(terminal: int, end: str) -> str:
    text, deadline = "", time.monotonic() + 60
    while not text.endswith(end):
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert ready, f"expected {end!r} in the end, got {text!r}"
        text += os.read(terminal, 4096).decode(errors="replace")
    return text


class Lines:
    """What the user types, one line after the other; an exception is raised."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)

    def __call__(self, question: str) -> str:
        line = self.lines.pop(0)
        if isinstance(line, str):
            return line
        raise line


@pytest.fixture
def chat(folder, monkeypatch):
    """chat(typed...) -> the messages of the prompt of every answer."""

    def chat(*typed: str | type[BaseException], **options) -> list[list[dict]]:
        tokenizer = load_tokenizer(folder)
        chat_format = bind_tokens(CHAT_FORMATS[options.pop("chat_format", "plain")], tokenizer)
        config = sample.SampleConfig(**{"max_new_tokens": 6, **options})
        sampler = sample.Sampler(load_model(folder), tokenizer, chat_format, config, Sampling())
        monkeypatch.setattr("builtins.input", Lines(*typed))
        asked, fitted, stream, fit = [], [], sample.stream, sample.fit
        monkeypatch.setattr(sample, "fit", lambda *a: fitted.append(fit(*a)) or fitted[-1])
        monkeypatch.setattr(
            sample, "stream", lambda *a: asked.append(list(fitted[-1][0])) or stream(*a)
        )
        sample.chat(sampler)
        return asked

    return chat


def test_a_chat_keeps_its_history(chat, capsys):
    first, second = chat("Tom", "  ", KeyboardInterrupt, "Lily", EOFError)
    answers = capsys.readouterr().out.split("\n")
    assert first == [{"role": "user", "content": "Tom"}]
    assert second == [
        *first,
        {"role": "assistant", "content": answers[0]},
        {**first[0], "content": "Lily"},
    ]


def test_format_none_has_no_history(chat):
    assert [len(messages) for messages in chat("Tom", "Lily", "/exit", chat_format="none")] == [
        1,
        1,
    ]


def test_a_long_chat_forgets_its_oldest_turns(chat, capsys):
    """120 positions: a message beyond them is refused, the oldest of many turns forgotten."""
    asked = chat("Tom " * 100, *["Tom has 3 apples"] * 8, EOFError)
    said = capsys.readouterr().err
    assert "this message is longer than the model's 120 positions" in said
    assert "(the conversation is long: its oldest turns are forgotten)" in said
    lengths = [len(messages) for messages in asked]
    assert lengths[:2] == [1, 3] and len(lengths) == 8 and max(lengths) < 15
    assert all(messages[0]["role"] == messages[-1]["role"] == "user" for messages in asked)


def test_a_message_that_is_refused_changes_nothing(chat, capsys):
    """Behind two turns that fit comes one that never can: the next one has both before it."""
    asked = chat("Tom", "Lily", "Tom " * 100, "Tom", EOFError)
    said = capsys.readouterr().err
    assert "this message is longer than the model's 120 positions" in said
    assert "forgotten" not in said
    assert [len(messages) for messages in asked] == [1, 3, 5]
    assert [turn["content"] for turn in asked[2][::2]] == ["Tom", "Lily", "Tom"]


def test_each_answer_of_a_chat_has_draws_of_its_own(chat, monkeypatch):
    seeds, real = [], sample.completion_seeds
    monkeypatch.setattr(sample, "completion_seeds", lambda *of: seeds.append(of) or real(*of))
    chat("Tom", "Lily", "Tom", EOFError, seed=5)
    assert seeds == [(5, 0, 1), (5, 1, 1), (5, 2, 1)]


def test_a_turn_without_an_answer_is_not_kept(chat, monkeypatch):
    answers = iter(["Yes.", " \n", "No."])
    monkeypatch.setattr(sample, "stream", lambda *_: next(answers))
    asked = chat("Tom", "Lily", "Ben", EOFError)
    said = [[turn["content"] for turn in messages] for messages in asked]
    assert said == [["Tom"], ["Tom", "Yes.", "Lily"], ["Tom", "Yes.", "Ben"]]


def test_room_is_a_quarter_of_the_positions_at_most(chat, monkeypatch):
    """Of 120 positions 30 are room enough, though 500 tokens may be drawn."""
    monkeypatch.setattr(sample, "stream", lambda *_: "Yes.")
    asked = chat("Tom", "Lily", EOFError, max_new_tokens=500)
    assert [len(messages) for messages in asked] == [1, 3]


def test_ctrl_c_ends_an_answer_and_keeps_what_was_said(chat, monkeypatch, capsys):
    add = sample.Printer.add

    def interrupted(self, indices, tokens):
        add(self, indices, tokens)
        if len(self.ids) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sample.Printer, "add", interrupted)
    asked = chat("Tom", "Lily", EOFError, max_new_tokens=50)
    said = capsys.readouterr().out.split("\n")[0]
    assert len(asked) == 2 and asked[1][1] == {"role": "assistant", "content": said}


def test_ctrl_c_keeps_the_results_so_far(folder, run, tmp_path, monkeypatch, capsys):
    """Interrupted behind the first completion; the same command draws the second one."""
    drawn, flags = samples.generate, ("--model", folder, "--max_new_tokens", 5)

    def interrupted(*args):
        yield next(drawn(*args))
        raise KeyboardInterrupt

    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(*flags, "--out", whole, stdin=b"Tom\nLily\n")
    with monkeypatch.context() as patch:
        patch.setattr(samples, "generate", interrupted)
        with pytest.raises(SystemExit) as end:
            run(*flags, "--out", out, stdin=b"Tom\nLily\n")
    assert end.value.code == 130 and len(read_lines(out.read_text())) == 1
    assert "1 of 2 rows" in capsys.readouterr().err
    run(*flags, "--out", out, stdin=b"Tom\nLily\n")
    assert out.read_bytes() == whole.read_bytes()


def test_reference_logps_are_those_of_the_model_without_its_adapter(folder, run, tmp_path):
    """An adapter that changes nothing: both log-probabilities are the same, to 1e-4."""
    add_lora(model := load_model(folder), 2, 4.0, ("q_proj",), seed=0)
    save_adapter(model, tmp_path / "adapter", str(folder))
    out = tmp_path / "out.jsonl"
    flags = ("--model", folder, "--adapter", tmp_path / "adapter", "--n", 3)
    run(*flags, "--out", out, "--reference_logps", "true", stdin=b"Tom\nLily\n")
    for row in read_lines(out.read_text()):
        assert row["reference_logps"] == pytest.approx(row["logps"], abs=1e-4)
    with pytest.raises(ValueError, match="--reference_logps is for an --adapter"):
        run("--model", folder, "--out", out, "--reference_logps", "true", stdin=b"Tom\n")


def test_reference_logps_leave_an_adapter_that_changes_much_out(folder, run, tmp_path):
    add_lora(model := load_model(folder), rank=2, alpha=8, seed=3)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.2, generator=torch.Generator().manual_seed(4))
    save_adapter(model, tmp_path / "adapter", str(folder))
    out = tmp_path / "out.jsonl"
    run("--model", folder, "--adapter", tmp_path / "adapter", "--out", out, "--reference_logps",
        "true", "--max_new_tokens", 9, stdin=b"Tom\n")  # fmt: skip
    (row,) = read_lines(out.read_text())
    assert abs(row["reference_logps"][0] - row["logps"][0]) > 0.1
    settings = json.loads((tmp_path / "out.jsonl.settings.json").read_text())
    assert settings["reference_weights"] == hash_weights(load_model(folder))
