"""Faults and their outcomes, those that are quick; `python -m tests.faults` does the others.

pytest tests/test_faults.py
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from model.adapter import load_policy
from model.checkpoint import load_model
from model.logbook import read_records
from model.training_state import (
    load_training_state,
    newest_whole,
    save_training_state,
    what_is_broken,
)
from tests.conftest import ROOT
from tests.test_train import assert_close, folder, main, pairs_of, run, settings, trained
from tests.test_training_state import CONFIG, SHARD, policy_and_optimizer

__all__ = ["folder"]  # a fixture
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def flip(file: Path, position: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


# ------------------------------------------------------------------------------------------------
# kill -9


def test_killed_runs_end_as_the_undisturbed_one():
    """Three kills by the script, of a run that trains all weights with a cached reference."""
    words = ["--only", "kills", "--runs", "full", "--ranks", "1", "--kills", "3", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("runs end with the same bytes, each record once") == 1


# ------------------------------------------------------------------------------------------------
# files that are not what was written


def test_a_run_goes_on_from_an_older_checkpoint_and_mends_the_torn_one(folder, capsys):
    """5 steps, saved after 2, 4 and 5. With the newest two torn, steps 3 to 5 are done again."""
    pairs = pairs_of()
    whole, records = run(settings(folder, keep=0), pairs, pairs)
    checkpoints = folder / "run" / "checkpoints"
    before = {file: file.read_bytes() for file in checkpoints.glob("*/*")}
    flip(checkpoints / "step-000005" / SHARD, 5000, 3)
    (checkpoints / "step-000004" / "state.json").unlink()
    capsys.readouterr()
    resumed, again = run(settings(folder, keep=0, resume=True), pairs, pairs)
    out = capsys.readouterr().out
    assert f"step-000005 is skipped: '{SHARD}' is not what was written" in out
    assert "step-000004 is skipped: 'state.json' is missing" in out
    assert f"resuming {folder / 'run'} after step 2" in out
    assert_close(trained(whole), trained(resumed), rtol=0)
    assert [r["step"] for r in again] == [r["step"] for r in records] == [0, 1, 2, 3, 4, 5, 5]
    assert [r.get("loss") for r in again] == [r.get("loss") for r in records]
    after = {file: file.read_bytes() for file in checkpoints.glob("*/*")}
    told = {file for file in after if file.name == SHARD}
    assert len(told) == 3 and all(after[file] == before[file] for file in told)
    assert after.keys() == before.keys()


def test_all_checkpoints_torn_is_an_error_that_names_each(folder, capsys):
    run(settings(folder, keep=0), pairs_of())
    files = sorted((folder / "run" / "checkpoints").glob(f"*/{SHARD}"))
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    size = files[0].stat().st_size
    with pytest.raises(FileNotFoundError, match="--resume expects a whole checkpoint in"):
        run(settings(folder, keep=0, resume=True), pairs_of())
    out = capsys.readouterr().out
    assert out.count(f"'{SHARD}' has {size} bytes, expected {size + 1}") == len(files) == 3
    assert len(read_records(folder / "run" / "metrics.jsonl")) == 5  # as they were


def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    """Every bit of the manifest; 200 bits anywhere in each of the files that it vouches for."""
    model, optimizer = policy_and_optimizer(steps=1)
    checkpoint = save_training_state(tmp_path, model, optimizer, 1, CONFIG)
    draw = random.Random(0)
    for file in sorted(checkpoint.iterdir()):
        content = file.read_bytes()
        bits = range(8 * len(content))
        for place in bits if file.name == "manifest.json" else draw.sample(bits, 200):
            flip(file, place // 8, place % 8)
            assert what_is_broken(checkpoint) is not None, (file.name, place)
            file.write_bytes(content)
        assert what_is_broken(checkpoint) is None


@pytest.mark.parametrize("after", [8, 11])
@pytest.mark.parametrize("keep", [1, 2])
def test_keep_never_takes_a_whole_checkpoint_for_a_torn_one(tmp_path, keep, after):
    """Steps 7, 9 and 10, of which 9 and 10 are torn, so that the run goes on from 7: whether it
    saves next after 8 or after 11, 7 is the other one that --keep 2 keeps."""
    model, optimizer = policy_and_optimizer(steps=1)
    for step in (7, 9, 10):
        checkpoint = save_training_state(tmp_path, model, optimizer, step, CONFIG)
        if step > 7:
            (checkpoint / SHARD).write_bytes(b"")
    assert load_training_state(tmp_path, model, optimizer, CONFIG) == 7
    save_training_state(tmp_path, model, optimizer, after, CONFIG, keep=keep)
    kept = [7, after] if keep == 2 else [after]
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:06d}" for step in kept]
    assert load_training_state(tmp_path, *policy_and_optimizer(), CONFIG) == after


def test_a_flipped_cache_is_computed_again(folder, capsys):
    """A bit of its header's length, of its header, of its key and of its numbers."""
    pairs = pairs_of()
    config = settings(folder, reference="cached", max_steps=1)
    _, records = run(config, pairs)
    (file,) = (folder / "run" / "reference").iterdir()
    numbers = 10 * 2 * 4  # bytes: 10 pairs, chosen and rejected, float32
    before = load_file(file)["logps"].clone()
    for place in (0, 8, b"logps", b"key", -numbers, -1):
        flip(file, place if isinstance(place, int) else file.read_bytes().index(place), 0)
        capsys.readouterr()
        _, again = run(config, pairs)
        assert f"{file} is not used, it" in capsys.readouterr().out, place
        assert torch.equal(load_file(file)["logps"], before)
        assert again[0]["loss"] == records[0]["loss"]


def test_a_flipped_adapter_is_refused_or_changes_one_number(folder):
    """An adapter has no checksum, as PEFT's have none: in its header, a flip is a clear error; in
    the numbers it loads, and one number is another one."""
    config = settings(folder, max_steps=1)
    policy, _ = run(config, pairs_of())
    train.save_policy(config, policy, None, None, folder / "run")
    file = folder / "run" / "adapter_model.safetensors"
    content = file.read_bytes()
    before = {name: values.clone() for name, values in load_file(file).items()}
    data = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    places = [*range(0, 8 * 8, 5), *random.Random(0).sample(range(8 * 8, 8 * data), 150)]
    for place in places:
        flip(file, place // 8, place % 8)
        try:
            load_policy(folder / "model", folder / "run", torch.float32, "cpu")
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert str(file) in str(error)
        file.write_bytes(content)
    assert refused >= 0.9 * len(places)  # some bits of the padding and of the metadata are idle
    flip(file, data + 3, 0)
    after = load_file(file)
    load_policy(folder / "model", folder / "run", torch.float32, "cpu")
    assert sum((before[name] != after[name]).sum().item() for name in before) == 1
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is truncated or corrupt"):
        load_policy(folder / "model", folder / "run", torch.float32, "cpu")


# ------------------------------------------------------------------------------------------------
# folders


def test_a_read_only_folder_is_an_error_before_the_first_step(monkeypatch, capsys):
    """/sys lets nobody make a folder, root included."""
    if not Path("/sys/kernel").is_dir():
        pytest.skip("needs the /sys of Linux, where even root may not make a folder")
    monkeypatch.chdir(ROOT)
    with pytest.raises(OSError, match=r"(Read-only|not permitted|denied).*'/sys/kernel/run'"):
        main(["--out_dir", "/sys/kernel/run", "--device", "cpu"], monkeypatch)
    assert "held-out:" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------
# signals, and a second run


def start(folder: Path, steps: int, body: str = "") -> subprocess.Popen:
    """A process that trains without end, saving every other step, when it has done so many steps.

    body: lines that are run before, and may change the loop.
    """
    script = folder / "forever.py"
    script.write_text(f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from tests.test_train import *
from model.run import lock, run_main
{body}
folder = Path({str(folder)!r})
(folder / "run").mkdir()
held = lock(folder / "run")
run_main(lambda: run(settings(folder, max_steps=100000), pairs_of()))
""")
    process = subprocess.Popen(
        [sys.executable, script], stdout=-1, stderr=-1, text=True, env=ENVIRONMENT
    )
    wait_for(process, lambda: len(read_records(folder / "run" / "metrics.jsonl")) >= steps)
    return process


def wait_for(process: subprocess.Popen, condition) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def test_a_second_run_is_refused_and_sigterm_saves(folder, monkeypatch):
    process = start(folder, steps=2)
    metrics = folder / "run" / "metrics.jsonl"
    monkeypatch.chdir(ROOT)
    words = ["--out_dir", str(folder / "run"), "--device", "cpu"]
    with pytest.raises(ValueError, match="holds a run; pass --resume or another folder"):
        main(words, monkeypatch)
    with pytest.raises(ValueError, match=rf"in use by another run \(process {process.pid} on "):
        main([*words, "--resume"], monkeypatch)
    assert not (folder / "run" / "config.json").exists()  # nothing was written by the second
    done = len(read_records(metrics))
    wait_for(process, lambda: len(read_records(metrics)) > done)  # unharmed, the first goes on
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    steps = [record["step"] for record in read_records(metrics)]
    assert process.returncode == 128 + signal.SIGTERM == 143, err
    assert steps == list(range(1, len(steps) + 1))
    assert f"stopped after step {len(steps)}; nothing is lost" in out and "Traceback" not in err
    assert newest_whole(folder / "run").name == f"step-{len(steps):06d}"


def test_sigterm_twice_ends_at_once(folder):
    """The save after step 4 never ends; the first signal waits for it, the second one does not."""
    body = """
save = train.save_training_state
train.save_training_state = lambda *a: save(*a) if a[3] < 4 else time.sleep(1000)
"""
    process = start(folder, 4, body)
    process.send_signal(signal.SIGTERM)
    said = ""
    while "finishing this step, then saving; once more stops at once" not in said:
        said += (line := process.stderr.readline())
        assert line, said
    assert process.poll() is None
    since = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM and time.monotonic() - since < 5
    steps = [record["step"] for record in read_records(folder / "run" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4] and newest_whole(folder / "run").name == "step-000002"


# ------------------------------------------------------------------------------------------------
# numbers that are none


def test_a_number_that_turns_bad_later_leaves_the_checkpoint_before_it(folder, monkeypatch):
    """NaN in step 4; the checkpoint is of step 2, and without the NaN the run goes on from there
    as if nothing had been."""
    pairs = pairs_of()
    whole, records = run(settings(folder, out_dir=str(folder / "whole")), pairs)
    compute, calls = train.compute_losses, []

    def spoil(*args):
        losses, metrics = compute(*args)
        calls.append(1)
        factor = math.nan if len(calls) == 4 else 1.0
        return losses * factor, metrics | {"loss": metrics["loss"] * factor}

    monkeypatch.setattr(train, "compute_losses", spoil)
    with pytest.raises(ValueError, match=r"step 4: loss nan.*nothing was updated"):
        run(settings(folder), pairs)
    monkeypatch.undo()
    lines = (folder / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in lines and [json.loads(x)["step"] for x in lines.splitlines()] == [1, 2, 3]
    resumed, again = run(settings(folder, resume=True), pairs)
    assert_close(trained(whole), trained(resumed), rtol=0)
    assert [r["loss"] for r in again] == [r["loss"] for r in records]


def test_a_reference_that_is_no_number_is_not_cached(folder):
    config = settings(folder, reference="cached")
    model = train.build_policy(config, torch.float32, "cpu")
    with torch.no_grad():
        model.embed_tokens.weight[13] = math.nan
    (folder / "run").mkdir()
    pairs = pairs_of()
    with pytest.raises(ValueError, match=r"gives \d+ pairs no finite log-probability"):
        train.train(config, model, pairs, [], folder / "run", "cpu")
    assert not (folder / "run" / "reference").exists()
    assert torch.isfinite(load_model(folder / "model").embed_tokens.weight).all()


def test_a_held_out_loss_that_is_no_number_stops_before_the_first_step(folder):
    """Token 13 is NaN; the training pairs are those without it, the held-out ones those with it.

    A NaN in the base is said of the reference, one in the adapter of the policy.
    """
    config = settings(folder)
    good, bad = [], []
    for pair in pairs_of():
        hit = 13 in [*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids]
        (bad if hit else good).append(pair)
    assert len(good) == len(bad) == 5
    (folder / "run").mkdir()
    model = train.build_policy(config, torch.float32, "cpu")
    with torch.no_grad():
        model.embed_tokens.weight[13] = math.nan
    with pytest.raises(ValueError, match=r"the reference policy gives 5 pairs no finite log-prob"):
        train.train(config, model, good, bad, folder / "run", "cpu")
    model = train.build_policy(config, torch.float32, "cpu")
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.lora_B.fill_(math.nan)
    with pytest.raises(ValueError, match=r"held-out loss nan after step 0; 5 pairs: .*made:\d"):
        train.train(config, model, good, bad, folder / "run", "cpu")
    assert (folder / "run" / "metrics.jsonl").read_text() == ""  # NaN is no JSON


def test_a_run_without_a_checkpoint_is_resumed_from_its_start(folder):
    """Killed before the first save: the folder holds a run, and --resume begins it again."""
    whole, records = run(settings(folder, save_every=0), pairs_of())
    shutil.rmtree(folder / "run" / "checkpoints")
    again, lines = run(settings(folder, save_every=0, resume=True), pairs_of())
    assert_close(trained(whole), trained(again), rtol=0)
    assert [r["loss"] for r in lines] == [r["loss"] for r in records] and len(lines) == 5
