"""The choices of a run that are left to us, and what is refused.

pytest tests/test_run.py
"""

import pytest
import torch

from model.run import choose_device


def test_choices_are_printed_and_impossible_devices_refused(capsys):
    device, _ = choose_device(None, None)
    out = capsys.readouterr().out
    assert f"device: {device} (" in out and "dtype: " in out
    assert choose_device("cpu", "bfloat16") == ("cpu", torch.bfloat16)
    for device in ("abacus", "meta"):
        with pytest.raises(ValueError, match=f"--device {device} cannot be used"):
            choose_device(device, None)
