"""What all benchmarks share: read the problems, complete or read, score, write, show a table.

A benchmark is a `Task`: prompts, a function that scores the completions of one problem, and one
that makes of all scored problems a value per problem for each metric. OUT gets
the files of `eval/results.py` and samples.jsonl, the completions, where they were drawn here; a run
that was stopped goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from data.chat import ChatFormat, encode_prompts
from data.formats import read_formats
from data.prompts import Replies, cut_at_stop
from data.rows import check_text, read_rows
from data.tokenizer import Tokenizer
from eval.results import Metrics, data_digest, read_baseline, report
from model import parallel
from model.adapter import load_policy
from model.checkpoint import DTYPES
from model.generate import check_prompt
from model.run import choose_device
from model.samples import Drawing, write_samples
from model.sampling import Sampling, completion_seeds

MACHINE = ("dtype", "device", "cache_gb", "shard")
GENERATION = (  # flags that say how completions are drawn: unknown for those made elsewhere
    "model", "adapter", "n", "temperature", "top_k", "top_p", "min_p", "max_new_tokens", "seed",
    "chat_format", "shots", "validation", *MACHINE,
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkConfig:
    model: str | None = None  # folder with the model to sample from
    adapter: str | None = None  # folder with a LoRA adapter for it
    samples: str | None = None  # score this samples file instead of sampling
    data: str | None = None  # file of problems
    limit: int | None = None  # only the first so many problems
    n: int = 1  # completions per problem
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # draw from the k most probable tokens; 0: from all
    top_p: float = 1.0  # draw from the most probable tokens that hold this mass; 1: from all
    min_p: float = 0.0  # draw from tokens this times as probable as the first; 0: from all
    max_new_tokens: int = 512  # per completion
    seed: int = 0  # of the sampling
    chat_format: str = "auto"  # one of the chat formats; auto: detected from the checkpoint
    dtype: str | None = None  # float32, bfloat16 or float16; none: bfloat16 on CUDA, else float32
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    cache_gb: float = 1.0  # memory for keys and values; it bounds what is generated at a time
    shard: bool = False  # under torchrun: share the weights among the ranks; else each has a copy
    out: str | None = None  # folder for the results
    baseline: str | None = None  # results folder of another policy on the same problems


@dataclass(frozen=True)
class Task:
    """One question: what is asked, and how the answers are judged."""

    name: str
    problems: Sequence[Mapping]
    prompts: Sequence[str]  # one for each problem
    raw: bool  # the prompt is continued as it stands; else it is a user message of a chat
    stop: tuple[str, ...]  # texts that end a completion
    score: Callable[[Mapping, Sequence[str]], dict]  # a problem, its completions -> its item
    metrics: Callable[[Sequence[Mapping]], Metrics]  # items -> see eval/results.py
    workers: int = 1  # problems that are scored at a time


def run_benchmark(config: BenchmarkConfig, task: Task) -> list[dict]:
    """From the flags to the results in OUT and the table; out: the items, on rank 0."""
    check_config(config)
    samples = Path(config.samples or Path(config.out) / "samples.jsonl")
    read = partial(read_completions, samples, len(task.problems), task.stop)
    completions = []
    if config.samples is not None:
        tell_unused(config, GENERATION)
        completions = read()
    n = min(map(len, completions), default=config.n)
    known = (task.name, data_digest(config.data), len(task.problems))
    baseline = read_baseline(config.baseline, config.out, *known, task.metrics, n)
    if config.samples is None:
        write_completions(config, task)
    if not parallel.is_main():
        return []
    with ThreadPoolExecutor(task.workers) as pool:
        scored = list(pool.map(task.score, task.problems, completions or read()))
    items = [{"index": i} | item for i, item in enumerate(scored)]
    settings = settings_of(config, samples, n)
    report(Path(config.out), task.name, settings, items, task.metrics, baseline)
    return items


def check_config(config: BenchmarkConfig) -> None:
    """ValueError for flags out of range, missing, or contradicting each other."""
    if config.out is None:
        raise ValueError("--out expects a folder for the results, got none")
    if (config.model is None) == (config.samples is None):
        raise ValueError("expected either --model to sample from, or --samples to score")
    if config.adapter is not None and config.model is None:
        raise ValueError("--adapter needs --model, the model that it belongs to")
    for flag in ("n", "limit", "max_new_tokens"):
        if (value := getattr(config, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} expects 1 or more, got {value}")
    if config.cache_gb <= 0:
        raise ValueError(f"--cache_gb expects a number above 0, got {config.cache_gb}")
    if config.dtype is not None and config.dtype not in DTYPES:
        raise ValueError(f"--dtype expects one of {', '.join(DTYPES)}, got {config.dtype!r}")
    if config.shard and parallel.world_size() == 1:
        raise ValueError("--shard needs more than one rank; start it with torchrun")
    if config.samples is not None and not Path(config.samples).is_file():
        raise FileNotFoundError(f"--samples expects a file, got {config.samples}")
    if config.model is not None and not Path(config.model).is_dir():
        raise FileNotFoundError(f"--model expects a folder with config.json, got {config.model}")
    completion_seeds(config.seed, 0, 1)
    sampling_of(config)


def tell_unused(config: object, flags: Sequence[str]) -> None:
    """Print which of these flags were given in vain beside --samples; MACHINE is always welcome."""
    default = type(config)()
    told = [name for name in vars(default) if name in flags and name not in MACHINE]
    if given := [name for name in told if getattr(config, name) != getattr(default, name)]:
        print(f"--samples are scored as they are, without --{', --'.join(given)}")


def sampling_of(config: BenchmarkConfig) -> Sampling:
    return Sampling(config.temperature, config.top_k, config.top_p, config.min_p)


# ------------------------------------------------------------------------------------------------
# problems and completions


def read_problems(
    config: BenchmarkConfig, check: Callable[[Mapping, str], Mapping]
) -> list[Mapping]:
    """The first --limit rows of --data, each as `check(row, file:line)` gives it back."""
    if config.data is None:
        raise ValueError("--data expects a file of problems, got none")
    path = Path(config.data)
    if not path.is_file():
        raise FileNotFoundError(f"--data expects a file, got {path}: no such file")
    problems = []
    for where, row in read_rows(path):
        if config.limit is not None and len(problems) >= config.limit:
            break
        problems.append(check(row, where))
    if not problems:
        raise ValueError(f"{path}: no problem in it; pass --data FILE or a larger --limit")
    return problems


def write_completions(config: BenchmarkConfig, task: Task) -> None:
    """Complete every prompt into OUT/samples.jsonl."""
    device, dtype = choose_device(config.device, config.dtype)
    tokenizer, chat_format = choose_formats(config, task)
    policy = load_policy(config.model, config.adapter, dtype, device, config.shard)
    messages = [[{"role": "user", "content": prompt}] for prompt in task.prompts]
    prompts = encode_prompts(messages, chat_format, tokenizer)
    for i, prompt in enumerate(prompts):
        check_prompt(policy, prompt, f"{config.data}, problem {i}")
    replies = Replies(chat_format, tokenizer, task.stop)
    drawing = Drawing(
        config.n,
        config.max_new_tokens,
        sampling_of(config),
        config.seed,
        replies.stop_ids,
        task.stop,
    )
    write_samples(
        policy,
        prompts,
        drawing,
        Path(config.out) / "samples.jsonl",
        replies.text,
        replies.find_stop if task.stop else None,
        cache_bytes=int(config.cache_gb * 1e9),
    )


def choose_formats(config: BenchmarkConfig, task: Task) -> tuple[Tokenizer, ChatFormat]:
    """The policy's tokenizer and chat format; none where the prompt is a text to be continued."""
    if task.raw and config.chat_format != "auto":
        raise ValueError(f"--chat_format {config.chat_format} has no meaning for a raw prompt")
    asked = "none" if task.raw else config.chat_format
    tokenizer, found, reason = read_formats(config.model, config.adapter, asked)
    print(f"chat format: {found.name} ({'a text to be continued' if task.raw else reason})")
    return tokenizer, found


def read_completions(path: Path, problems: int, stop: Sequence[str]) -> list[list[str]]:
    """The completions of each of the first `problems` rows of the data file, cut at a stop text.

    Those that were drawn here are cut already; those made elsewhere are held to the same rule.
    """
    by_index: dict[int, list[str]] = {}
    for where, row in read_rows(path):
        index, texts = row.get("index"), row.get("completions")
        if type(index) is not int or index < 0 or index in by_index:
            raise ValueError(f"{where}: expected an index not yet seen, got {index!r}")
        if not isinstance(texts, list) or not texts:
            raise ValueError(f"{where}: expected `completions`, a list of texts")
        checked = [check_text(text, f"completions[{i}]", where) for i, text in enumerate(texts)]
        by_index[index] = [cut_at_stop(text, stop) for text in checked]
    missing = [index for index in range(problems) if index not in by_index]
    if missing:
        raise ValueError(
            f"{path}: no completions for {len(missing)} of {problems} problems, the first is "
            f"{missing[0]}; pass the --data they were made from, or --limit"
        )
    return [by_index[index] for index in range(problems)]


def settings_of(config: BenchmarkConfig, samples: Path, n: int) -> dict:
    """Every flag and the SHA-256 of data and completions; null: not known here.

    n: how many completions each problem has, or the fewest
    """
    settings = asdict(config) | {"data_sha256": data_digest(config.data)}
    settings["samples_sha256"] = data_digest(samples)
    if config.samples is not None:
        settings |= {name: None for name in GENERATION if name in settings} | {"n": n}
    return settings
