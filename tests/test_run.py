"""The choices of a run that are left to us, what is refused, and what a message suggests.

pytest tests/test_run.py
"""

import resource
import signal
import sys
from types import SimpleNamespace

import pytest
import torch

from model.run import Interrupt, choose_device, peak_memory_gb, run_main


def test_choices_are_printed_and_impossible_devices_refused(capsys):
    device, _ = choose_device(None, None)
    out = capsys.readouterr().out
    assert f"device: {device} (" in out and "dtype: " in out
    assert choose_device("cpu", "bfloat16") == ("cpu", torch.bfloat16)
    for device in ("abacus", "meta"):
        with pytest.raises(ValueError, match=f"--device {device} cannot be used"):
            choose_device(device, None)


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


@pytest.mark.parametrize("platform, gb", [("linux", 2.048), ("darwin", 0.002)])
def test_peak_memory_is_in_the_units_of_the_system(monkeypatch, platform, gb):
    """2 million KiB on Linux are 2.048 GB; macOS counts bytes."""
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2_000_000))
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory_gb("cpu") == pytest.approx(gb)


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
