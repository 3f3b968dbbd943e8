r"""How often does a policy solve the embedded word problems, and are its equations true?

    python -m eval.arithmetic --model data/tiny --data data/tiny/heldout.jsonl --out runs/sft-eval
    python -m eval.arithmetic --model data/tiny --adapter runs/tiny-spl --out runs/spl-eval \
        --baseline runs/sft-eval
    python -m eval.arithmetic --samples samples.jsonl --out runs/scored     # no model is loaded

Writes OUT/summary.json (metrics with 95% intervals over problems), OUT/items.jsonl (one problem a
line, with the verdict on each completion) and, after generating, OUT/samples.jsonl.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from data.chat import detect_chat_format, encode_prompt, stop_ids
from data.problems import check_solution, extract_answer
from data.prompts import completion_text
from data.synthetic import read_rows, write_rows
from data.tokenizer import load_tokenizer
from eval.metrics import bootstrap_interval, majority_vote, paired_difference, pass_at_k
from model import parallel
from model.adapter import load_policy
from model.config import parse_config
from model.generate import Sampling, completion_seeds, generate
from model.run import choose_device, run_main


@dataclass(frozen=True)
class ArithmeticConfig:
    model: str = "data/tiny"  # folder with the model to sample from
    adapter: str | None = None  # folder with a LoRA adapter for it
    samples: str | None = None  # score this samples file instead of sampling
    data: str = "data/tiny/heldout.jsonl"  # problems: one JSON object a line, prompt and answer
    limit: int | None = None  # only the first so many problems
    n: int = 8  # completions per problem
    temperature: float = 1.0  # 0 is greedy
    max_new_tokens: int = 120  # per completion
    seed: int = 0  # of the sampling
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    shard: bool = False  # under torchrun: share the weights among the ranks; else each has a copy
    out: str = "runs/arithmetic"  # folder for the results
    baseline: str | None = None  # results folder of another policy on the same problems


# ---------------------------------------------------------------------------------------------
# scoring
# ---------------------------------------------------------------------------------------------


def score_problem(index: int, problem: Mapping, completions: Sequence[str]) -> dict:
    """The verdict on every completion; `valid` here is right with every equation true."""
    verdicts = [check_solution(problem, text) for text in completions]
    return {
        "index": index,
        "answer": problem["answer"],
        "answers": [extract_answer(text) for text in completions],
        "correct": [correct for correct, _ in verdicts],
        "valid": [correct and valid for correct, valid in verdicts],
        "distinct": len(set(completions)),
    }


def metric_values(items: Sequence[Mapping]) -> dict[str, list[float]]:
    """name -> one value per problem: pass@k and valid@k for k = 1, 2, 4, ..., the votes, ..."""
    n = min(len(item["correct"]) for item in items)
    ks = [2**i for i in range(n.bit_length())]
    values = {
        f"{name}@{k}": [pass_at_k(len(item[key]), sum(item[key]), k) for item in items]
        for name, key in (("pass", "correct"), ("valid", "valid"))
        for k in ks
    }
    values[f"majority@{n}"] = [majority_vote(i["answers"][:n], i["answer"]) for i in items]
    values["no_answer"] = [i["answers"].count(None) / len(i["answers"]) for i in items]
    values["distinct"] = [i["distinct"] / len(i["answers"]) for i in items]
    return values


def summarize(values: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """name -> value, low, high: the mean over problems and its 95% bootstrap interval."""
    metrics = {}
    for name, per_problem in values.items():
        low, high = bootstrap_interval(per_problem)
        metrics[name] = {"value": sum(per_problem) / len(per_problem), "low": low, "high": high}
    return metrics


def compare(items: Sequence[Mapping], baseline: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """Our pass@1 and valid@1 minus the baseline's, paired by problem."""
    if any(not {"index", "answer", "correct", "valid"} <= set(item) for item in baseline):
        raise ValueError("--baseline expects the results folder of an earlier eval.arithmetic")
    if [(i["index"], i["answer"]) for i in items] != [(i["index"], i["answer"]) for i in baseline]:
        raise ValueError(
            "--baseline has other problems; score both policies with the same --data and --limit"
        )
    ours, theirs, differences = metric_values(items), metric_values(baseline), {}
    for name in ("pass@1", "valid@1"):
        value, low, high = paired_difference(ours[name], theirs[name])
        differences[f"{name} - baseline"] = {"value": value, "low": low, "high": high}
    return differences


# ---------------------------------------------------------------------------------------------
# completions: read or made
# ---------------------------------------------------------------------------------------------


def read_problems(path: Path, limit: int | None) -> list[dict]:
    problems = read_rows(path)[:limit]
    for number, row in enumerate(problems, start=1):
        if not isinstance(row.get("prompt"), str) or not isinstance(row.get("answer"), int):
            raise ValueError(f"{path}:{number}: expected a text `prompt` and an integer `answer`")
    if not problems:
        raise ValueError(f"{path}: no problem in it; pass --data FILE or a larger --limit")
    return problems


def sample_completions(config: ArithmeticConfig, questions: Sequence[str]) -> list[list[str]]:
    """n completions of each question; which ones depends on (seed, question, sample) alone.

    Each rank takes its share of the questions; all get the completions of all.
    """
    device, dtype = choose_device(config.device, "float32")
    tokenizer = load_tokenizer(config.model)
    chat_format, reason = detect_chat_format(config.model, tokenizer)
    print(f"chat format: {chat_format.name} ({reason})")
    policy = load_policy(config.model, config.adapter, dtype, device, config.shard)
    prompts, seeds = [], []
    for i in parallel.share(len(questions)):
        message = {"role": "user", "content": questions[i]}
        prompts += [encode_prompt([message], chat_format, tokenizer)] * config.n
        seeds += completion_seeds(config.seed, i, config.n)
    drawn = generate(
        policy,
        prompts,
        seeds,
        config.max_new_tokens,
        Sampling(config.temperature),
        stop_ids(chat_format, tokenizer),
    )
    hide = not parallel.is_main()
    with parallel.in_lockstep(policy):
        bar = tqdm(drawn, total=len(prompts), desc="sampling", unit="completion", disable=hide)
        texts = [completion_text(completion.ids, chat_format, tokenizer) for completion in bar]
    own = [texts[start : start + config.n] for start in range(0, len(texts), config.n)]
    return parallel.gather_shares(own)


def read_samples(path: Path, problems: int) -> list[list[str]]:
    """The completions of each of the `problems` first rows of the data file."""
    by_index: dict[int, list[str]] = {}
    for number, row in enumerate(read_rows(path), start=1):
        index, texts = row.get("index"), row.get("completions")
        if type(index) is not int or index < 0 or index in by_index:
            raise ValueError(f"{path}:{number}: expected an index not yet seen, got {index!r}")
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{path}:{number}: expected `completions`, a list of texts")
        by_index[index] = texts
    missing = [index for index in range(problems) if index not in by_index]
    if missing:
        raise ValueError(
            f"{path}: no completions for {len(missing)} of {problems} problems, the first is "
            f"{missing[0]}; pass the --data they were made from, or --limit"
        )
    return [by_index[index] for index in range(problems)]


# ---------------------------------------------------------------------------------------------
# results
# ---------------------------------------------------------------------------------------------


def write_results(out: Path, settings: Mapping, items: Sequence[Mapping], metrics: Mapping) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "items.jsonl", items)
    summary = {
        "task": "arithmetic",
        "settings": dict(settings),
        "problems": len(items),
        "metrics": dict(metrics),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def print_table(metrics: Mapping[str, Mapping[str, float]]) -> None:
    width = max(map(len, metrics))
    print(f"{'':{width}}    value      low     high")
    for name, row in metrics.items():
        print(f"{name:{width}}  {row['value']:7.4f}  {row['low']:7.4f}  {row['high']:7.4f}")


def main() -> None:
    config = parse_config(ArithmeticConfig)
    if config.shard and parallel.world_size() == 1:
        raise ValueError("--shard needs more than one rank; start it with torchrun")
    for flag in ("n", "limit", "max_new_tokens"):
        if (value := getattr(config, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} expects 1 or more, got {value}")
    problems = read_problems(Path(config.data), config.limit)
    baseline = Path(config.baseline) / "items.jsonl" if config.baseline is not None else None
    baseline_items = read_rows(baseline) if baseline is not None else None  # before the sampling
    if config.samples is None:
        completions = sample_completions(config, [problem["prompt"] for problem in problems])
        if not parallel.is_main():
            return
        rows = [{"index": i, "completions": texts} for i, texts in enumerate(completions)]
        Path(config.out).mkdir(parents=True, exist_ok=True)
        write_rows(Path(config.out) / "samples.jsonl", rows)
    else:
        completions = read_samples(Path(config.samples), len(problems))
    rows = zip(problems, completions, strict=True)
    items = [score_problem(index, *row) for index, row in enumerate(rows)]
    metrics = summarize(metric_values(items))
    if baseline_items is not None:
        metrics |= compare(items, baseline_items)
    digest = hashlib.sha256(Path(config.data).read_bytes()).hexdigest()
    settings = asdict(config) | {"data_sha256": digest}
    if config.samples is not None:  # made elsewhere: how is not known here
        made = ("model", "adapter", "n", "temperature", "max_new_tokens", "seed", "device", "shard")
        settings |= dict.fromkeys(made)
    write_results(Path(config.out), settings, items, metrics)
    print_table(metrics)
    print(f"{len(items)} problems, 95% intervals over problems; details in {config.out}")


if __name__ == "__main__":
    run_main(main)
