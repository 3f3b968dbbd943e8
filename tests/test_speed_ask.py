"""eval/speed_ask.py, and so eval.mmlu: what lm-eval says of the same questions, offline.

pytest tests/test_speed_ask.py
"""

import pytest

from eval.mmlu import read_problems
from eval.speed_choices import run_turn


@pytest.mark.parametrize("num_shots", [0, 5])
def test_lm_eval_and_we_agree(smollm2_dir, shared_data, num_shots):
    """Real questions of two subjects: each choice within 1e-3, so the same answers and accuracy."""
    pytest.importorskip("lm_eval")
    problems, shots = [], {}
    for subject in ("anatomy", "global_facts"):
        for kind, rows in (("test", 2), ("dev", num_shots)):
            file = str(shared_data / "mmlu" / kind / f"{subject}_{kind}.csv")
            some = read_problems(file, "--data", rows) if rows else []
            if kind == "test":
                problems += some
            else:
                shots[subject] = some
    job = {
        "problems": problems,
        "shots": shots,
        "num_shots": num_shots,
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
