"""The choices of a run that are left to us, what is refused, and what a message suggests.

pytest tests/test_run.py
"""

import io
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import model.run
from model.run import (
    Interrupt,
    choose_device,
    choose_out_dir,
    git_commit,
    hold,
    lock,
    peak_memory_gb,
    run_main,
)


def test_choices_are_printed_and_impossible_devices_refused(capsys):
    device, _ = choose_device(None, None)
    out = capsys.readouterr().out
    assert f"device: {device} (" in out and "dtype: " in out
    assert choose_device("cpu", "bfloat16") == ("cpu", torch.bfloat16)
    for device in ("abacus", "meta"):
        with pytest.raises(ValueError, match=f"--device {device} cannot be used"):
            choose_device(device, None)


def test_a_gpu_computes_in_bfloat16_unless_asked(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert choose_device("cuda", None) == ("cuda", torch.bfloat16)
    assert choose_device("cuda:1", "float32") == ("cuda:1", torch.float32)


@pytest.mark.parametrize(
    ("error", "code", "ours", "usual"),
    [
        (torch.OutOfMemoryError("no room"), 2, "no room\nspare", "no room\nLower --cache_gb, or"),
        (
            RuntimeError("gloo: connection closed"),
            3,
            "it was stands above. go on",
            "it was stands above. What was written is whole: the same command goes on",
        ),
    ],
)
def test_what_to_do_is_the_commands_own(capsys, error, code, ours, usual):
    def fail() -> None:
        raise error

    for hints, message in ((("spare", "go on"), ours), ((), usual)):
        with pytest.raises(SystemExit) as stop:
            run_main(fail, *hints)
        said = capsys.readouterr().err
        assert stop.value.code == code and message in said and "--resume" not in said


def test_a_reader_that_has_gone_ends_it_without_a_word(monkeypatch):
    """As a shell counts SIGPIPE, 128 + 13; nothing is left that Python could complain to."""

    def fail() -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(SystemExit) as stop:
        run_main(fail)
    assert stop.value.code == 141 and sys.stderr.closed


def test_ctrl_c_outside_a_loop_ends_with_one_word(capsys):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_main(stop)
    assert (end.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_an_error_that_is_not_the_user_s_keeps_its_traceback():
    def fail() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_main(fail)


@pytest.mark.parametrize("platform, gb", [("linux", 2.048), ("darwin", 0.002)])
def test_peak_memory_is_in_the_units_of_the_system(monkeypatch, platform, gb):
    """2 million KiB on Linux are 2.048 GB; macOS counts bytes."""
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2_000_000))
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory_gb("cpu") == pytest.approx(gb)


# ------------------------------------------------------------------------------------------------
# run folders


def test_a_run_folder_is_never_that_of_an_input(tmp_path):
    """A folder, or where a file lies."""
    (tmp_path / "config.json").write_text("{}")
    for given in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ValueError, match="is the folder of an input"):
            choose_out_dir(str(tmp_path), "name", False, [str(given)])


def test_ranks_that_may_be_started_again_need_a_folder_to_go_on_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert choose_out_dir(None, "name", False, []) == Path("runs/name")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ValueError, match="--max-restarts expects --out_dir"):
        choose_out_dir(None, "name", False, [])


def test_a_run_that_was_killed_before_its_first_step_begins_again(tmp_path, monkeypatch):
    """Its config.json is there and no metrics.jsonl; torchrun starts it as a run that goes on."""
    (tmp_path / "config.json").write_text('{"_argv": []}')
    assert choose_out_dir(str(tmp_path), "name", False, []) == tmp_path
    with pytest.raises(FileNotFoundError, match="--resume expects a run in --out_dir"):
        choose_out_dir(str(tmp_path), "name", True, [])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert choose_out_dir(str(tmp_path), "name", True, []) == tmp_path


def test_a_run_goes_on_beside_the_model_that_it_has_saved(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "model").mkdir()
    assert choose_out_dir(str(tmp_path), "name", True, []) == tmp_path
    with pytest.raises(ValueError, match="holds a run; pass --resume or another folder"):
        choose_out_dir(str(tmp_path), "name", False, [])


def test_a_folder_that_has_come_to_hold_a_run_is_refused(tmp_path):
    """Another run has had it between the choice and the lock."""
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="holds a run; pass --resume or another folder"):
        lock(tmp_path)
    lock(tmp_path, resume=True).close()


def test_a_lock_names_its_last_holder_alone(tmp_path):
    for _ in range(2):
        hold(tmp_path / "lock", "it", "file").close()
    assert (tmp_path / "lock").read_text().count("process ") == 1


def test_a_commit_with_changes_has_a_plus(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        by = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *by, *words], cwd=tmp_path, check=True, capture_output=True)

    if shutil.which("git") is None:
        pytest.skip("needs git")
    file = tmp_path / "model" / "run.py"
    file.parent.mkdir()
    monkeypatch.setattr(model.run, "__file__", str(file))
    file.write_text("a")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    clean = git_commit()
    assert len(clean) == 12
    file.write_text("b")
    assert git_commit() == f"{clean}+"


# ------------------------------------------------------------------------------------------------
# interrupts


def test_the_second_ctrl_c_stops_at_once(capfd):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = Interrupt()
    try:
        signal.raise_signal(signal.SIGINT)  # to this thread: os.kill may choose another, and later
        assert interrupt.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        interrupt.restore()
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err.count("finishing this step, then saving") == 1
