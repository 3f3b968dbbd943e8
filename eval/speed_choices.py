"""Multiple-choice questions, side by side: eval.mmlu and lm-eval on the same questions of MMLU.

    python -m eval.speed choices --model DIR --data mmlu/test --dev mmlu/dev
    python -m eval.speed choices --model DIR --data mmlu/test --shots 0 --questions 20

    ours     the exemplars of a subject are read once, questions are packed, letters add no token
    lm_eval  its own task definitions and its loop over transformers, --batch_size rows at a time

Each runs in a process of its own, and they take turns. Reported besides: how far the choices'
log-probabilities lie apart, and in how many questions both choose the same letter.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.mmlu import read_problems
from eval.speed import (
    choose_variants,
    describe_machine,
    header,
    installed,
    load_average,
    markdown_table,
    over,
    pin_threads,
    run_module,
    shown,
    spread,
    take_turns,
    warn_if_busy,
    write_summary,
)
from model.config import parse_config
from model.flags import refuse_given
from model.run import choose_device

ENGINES = ("ours", "lm_eval")


@dataclass(frozen=True)
class SpeedChoicesConfig:
    model: str = "data/tiny"  # folder of a Llama or Mistral checkpoint
    data: str | None = None  # folder of MMLU's questions
    dev: str | None = None  # folder of the exemplars
    shots: int = 5  # exemplars before each question
    subjects: int = 6  # spread over all that --data has
    questions: int = 10  # of each subject
    batch_size: int = 1  # of lm-eval
    only: tuple[str, ...] | None = None  # of ours and lm_eval; none: both
    dtype: str = "float32"  # float32 or bfloat16
    repeats: int = 1  # turns: processes of each
    threads: int | None = None  # of the products; none: one for each core
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    out: str = "runs/speed-choices"  # folder for summary.json


def main(words: list[str]) -> None:
    config = parse_config(SpeedChoicesConfig, words)
    check_config(config)
    engines, skipped = choose_variants(ENGINES, config.only), {}
    if "lm_eval" in engines and installed("lm_eval") is None:
        engines.remove("lm_eval")
        skipped["lm_eval"] = "pip install lm-eval"
    if not engines:
        raise ValueError(f"nothing is left to run: {skipped}")
    device, _ = choose_device(config.device, config.dtype)
    pin_threads(config.threads)
    job = make_job(config, device)
    machine = describe_machine(device, " ".join(["python -m eval.speed choices", *words]))
    print(header(machine))
    warn_if_busy(machine["load_before"], machine["cores"])
    turns = take_turns({name: partial(run_turn, name, job) for name in engines}, config.repeats)
    results = summarize(turns)
    print("\n" + table(results) + "\n")
    for line in notes(results, skipped):
        print(line)
    machine["load_after"] = load_average()
    own = 0 if device.startswith("cuda") else machine["threads"]
    warn_if_busy(machine["load_after"], machine["cores"], own)
    summary = {"task": "speed/choices", "settings": asdict(config) | {"device": device}}
    write_summary(config.out, summary | {"machine": machine, "variants": results,
                                         "skipped": skipped, "turns": turns})  # fmt: skip


def check_config(config: SpeedChoicesConfig) -> None:
    least = {"shots": 0, "subjects": 1, "questions": 1, "batch_size": 1, "repeats": 1}
    for flag, bound in least.items():
        if (value := getattr(config, flag)) < bound:
            raise ValueError(f"--{flag} expects {bound} or more, got {value}")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype expects float32 or bfloat16, got {config.dtype!r}")
    if config.shots and config.dev is None:
        raise ValueError("--dev expects the folder of exemplars, got none; or pass --shots 0")
    if not config.shots:
        refuse_given(config, ("dev",), "beside --shots 0")


def make_job(config: SpeedChoicesConfig, device: str) -> dict[str, Any]:
    """Some subjects, spread evenly over all, and their first questions."""
    problems = read_problems(config.data, "--data", config.questions)
    names = list(dict.fromkeys(problem["subject"] for problem in problems))
    chosen = {names[i * len(names) // config.subjects] for i in range(config.subjects)}
    shots: dict[str, list] = {name: [] for name in chosen}
    for problem in read_problems(config.dev, "--dev", config.shots) if config.shots else ():
        if problem["subject"] in chosen:
            shots[problem["subject"]].append(problem)
    return {
        "problems": [problem for problem in problems if problem["subject"] in chosen],
        "shots": shots,
        "num_shots": config.shots,
        "model": config.model,
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "threads": config.threads,
        "device": device,
    }


def run_turn(engine: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """What one process says; ValueError with its complaint where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        asked, said = Path(folder) / "job.json", Path(folder) / "result.json"
        own = {"engine": engine, "device": torch.device(job["device"]).type}
        asked.write_text(json.dumps(job | own))
        words = [str(asked), str(said)]
        reason = run_module("eval.speed_ask", words, job["threads"], job["device"])
        if reason is not None:
            raise ValueError(f"{engine} failed: {reason}")
        result = json.loads(said.read_text())
    print(f"  {engine:<8} {result['questions']} questions, {result['seconds']:.3g} s", flush=True)
    return result


# ------------------------------------------------------------------------------------------------
# what is said of it


def summarize(turns: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """{engine: its numbers}; ratios and distances are to lm_eval."""
    results = {}
    for name, some in turns.items():
        rates = [turn["questions"] / turn["seconds"] for turn in some]
        held = [turn["peak_bytes"] for turn in some if turn["peak_bytes"] is not None]
        results[name] = {
            "questions_per_s": spread(rates),
            "seconds": spread([turn["seconds"] for turn in some]),
            "cpu_seconds": spread([turn["cpu_seconds"] for turn in some]),
            "peak_bytes": max(held, default=None),
            "accuracy": some[0]["accuracy"],
        }
    peer = results.get("lm_eval", {})
    for name, result in results.items():
        rate = peer.get("questions_per_s", {}).get("median")
        result["rate/lm_eval"] = over(result["questions_per_s"]["median"], rate)
        if "lm_eval" in turns:
            ours, theirs = (np.array(turns[key][0]["logps"]) for key in (name, "lm_eval"))
            result["largest_difference"] = float(np.abs(ours - theirs).max())
            result["same_answer"] = float((ours.argmax(1) == theirs.argmax(1)).mean())
    return results


def table(results: Mapping[str, dict[str, Any]]) -> str:
    columns = ["asked by", "questions/s", "/ lm-eval", "s", "CPU s", "peak MiB", "accuracy"]
    rows = []
    for name, r in results.items():
        rows.append([
            name,
            f"{r['questions_per_s']['median']:.4g}",
            shown(r["rate/lm_eval"], "{:.2f}"),
            f"{r['seconds']['median']:.3g}",
            f"{r['cpu_seconds']['median']:.3g}",
            shown(over(r["peak_bytes"], 2**20), "{:.0f}"),
            f"{r['accuracy']:.4f}",
        ])  # fmt: skip
    return markdown_table(columns, rows)


def notes(results: Mapping[str, dict[str, Any]], skipped: Mapping[str, str]) -> list[str]:
    lines = [f"{name} is left out: {reason}" for name, reason in skipped.items()]
    if "largest_difference" in (ours := results.get("ours", {})):
        difference, same = ours["largest_difference"], ours["same_answer"]
        lines.append(f"log-probabilities of choices differ by {difference:.2g} at most; the same "
                     f"answer to {same:.1%} of the questions")  # fmt: skip
    return lines
