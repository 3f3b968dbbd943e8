"""One process of `python -m eval.speed choices`: the same questions, asked by us or by lm-eval.

lm-eval is given its own task definitions of MMLU, on a file of our questions in place of its
download, and the model through transformers. What is timed is all that follows the loading of the
weights: prompts, tokens, forwards, scores.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.chat import detect_chat_format
from data.tokenizer import load_tokenizer
from eval.choices import Task, ask_model, encode_questions
from eval.mmlu import ask, metric_values, score
from eval.speed import begin_peak, peak_bytes, pin_threads
from model.adapter import load_policy
from model.checkpoint import DTYPES
from model.run import run_main

Job = dict[str, Any]


def main() -> None:
    if len(sys.argv) != 3:
        raise ValueError("expected the files of a job and of its result; the command to measure "
                         "with is python -m eval.speed choices")  # fmt: skip
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(run_engine(job)) + "\n")


def run_engine(job: Job) -> dict[str, Any]:
    """seconds, memory, accuracy, and the log-probabilities of each question's choices."""
    pin_threads(job["threads"])
    with tempfile.TemporaryDirectory() as folder:
        run = (prepare_ours if job["engine"] == "ours" else prepare_lm_eval)(job, Path(folder))
        begin, cpu, started = begin_peak(job["device"]), time.process_time(), time.perf_counter()
        logps = run()
        seconds = time.perf_counter() - started
    answers = [max(range(len(some)), key=some.__getitem__) for some in logps]
    right = [a == problem["answer"] for a, problem in zip(answers, job["problems"], strict=True)]
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "begin_bytes": begin,
        "peak_bytes": peak_bytes(job["device"]),
        "questions": len(logps),
        "accuracy": sum(right) / len(right),
        "logps": logps,
    }


def prepare_ours(job: Job, folder: Path) -> Callable[[], list[list[float]]]:
    model = load_policy(job["model"], None, DTYPES[job["dtype"]], job["device"])
    tokenizer = load_tokenizer(job["model"])
    chat_format, _ = detect_chat_format(job["model"], tokenizer, "none")

    def run() -> list[list[float]]:
        problems = job["problems"]
        questions = [ask(i, problem, job["shots"]) for i, problem in enumerate(problems)]
        metrics = partial(metric_values, bins=15, binning="width")
        task = Task("mmlu", problems, questions, score, metrics)
        positions = model.config.max_position_embeddings
        encoded = encode_questions(questions, chat_format, tokenizer, positions, chat=False)
        return [found["logps"] for found in ask_model(model, task, *encoded, folder / "logps")]

    return run


def prepare_lm_eval(job: Job, folder: Path) -> Callable[[], list[list[float]]]:
    """Offline: what lm-eval would look for on the hub is in local files."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    from lm_eval.models.huggingface import HFLM

    batch_size = job["batch_size"]
    lm = HFLM(
        pretrained=job["model"],
        dtype=job["dtype"],
        device=job["device"],
        batch_size=batch_size,
    )
    subjects = list(dict.fromkeys(problem["subject"] for problem in job["problems"]))
    tasks = [lm_eval_task(job, subject, folder) for subject in subjects]

    def run() -> list[list[float]]:
        from lm_eval.evaluator import simple_evaluate

        said = simple_evaluate(lm, tasks=tasks, num_fewshot=job["num_shots"], bootstrap_iters=0)
        rows = [said["samples"][f"mmlu_{subject}"] for subject in subjects]
        return [choice_logps(row) for some in rows for row in sorted(some, key=doc_id)]

    return run


def lm_eval_task(job: Job, subject: str, folder: Path) -> dict[str, Any]:
    """lm-eval's own definition of a subject, with the questions of the job as its data."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    own = [problem for problem in job["problems"] if problem["subject"] == subject]
    files = {
        "test": write_jsonl(folder / f"{subject}_test.jsonl", own),
        "dev": write_jsonl(folder / f"{subject}_dev.jsonl", job["shots"].get(subject) or own),
    }
    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    config = load_yaml(folder / f"mmlu_{subject}.yaml")
    for name in ("dataset_name", "tag"):
        config.pop(name, None)
    return config | {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}


def write_jsonl(file: Path, rows: Sequence[Mapping]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def doc_id(row: Mapping) -> int:
    return row["doc_id"]


def choice_logps(row: Mapping) -> list[float]:
    """(log-probability, whether it is the greedy one) of each choice -> the first."""
    return [logp for logp, _ in row["filtered_resps"]]


if __name__ == "__main__":
    run_main(main)
