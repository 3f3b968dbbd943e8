"""eval/speed_ask.py, and so eval.mmlu: what lm-eval says of the same questions, offline.

pytest tests/test_speed_ask.py
"""

import pytest

from eval.mmlu import read_problems
from eval.speed_choices import run_turn


def test_lm_eval_and_we_agree(smollm2_dir, shared_data):
    """Real questions of two subjects, five exemplars: each choice within 1e-3, so the same answers
    and accuracy.
    """
    pytest.importorskip("lm_eval")
    problems, shots = [], {}
    for subject in ("anatomy", "global_facts"):
        test, dev = (str(shared_data / "mmlu" / kind / f"{subject}_{kind}.csv")
                     for kind in ("test", "dev"))  # fmt: skip
        problems += read_problems(test, "--data", 2)
        shots[subject] = read_problems(dev, "--data", 5)
    job = {
        "problems": problems,
        "shots": shots,
        "num_shots": 5,
        "model": str(smollm2_dir),
        "batch_size": 1,
        "dtype": "float32",
        "threads": None,
        "device": "cpu",
    }
    ours, theirs = (run_turn(engine, job) for engine in ("ours", "lm_eval"))
    assert ours["questions"] == theirs["questions"] == 4
    for one, two in zip(ours["logps"], theirs["logps"], strict=True):
        assert one == pytest.approx(two, abs=1e-3)
    assert ours["accuracy"] == theirs["accuracy"]
