"""How likely is each choice of each question? Packed forwards, for what chooses among given texts.

No command of its own; `eval.mmlu` and `eval.truthfulqa` ask with it. A question and each of its
choices are tokenised together, since a choice may share a token with what stands before it: what
differs is the choice, and its log-probability is the sum over these tokens. Questions of a group
begin alike (few-shot exemplars): that part is read once (`model/score.py`).

OUT/logps.jsonl has one row for each forward and is taken up after a kill; items.jsonl has the same
numbers one problem a line, and is what `--samples` reads, for the questions that it was made from.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.chat import ChatFormat, encode_completions, encode_prompts
from data.formats import read_formats
from data.rows import read_rows
from data.tokenizer import Tokenizer
from eval.benchmark import tell_unused
from eval.calibration import reliability_table
from eval.results import Metrics, data_digest, read_baseline, report
from model import parallel, score
from model.adapter import load_policy
from model.checkpoint import DTYPES
from model.reference import hash_weights
from model.resumable import write_rows
from model.run import choose_device, write_text
from model.samples import digest_of_ids
from model.score import Part, common_length, plan_forwards, read_common, score_parts
from model.transformer import Transformer

STYLES = ("text", "chat")
BINNINGS = ("width", "mass")
ENCODED = 256  # questions at a time: each choice is encoded behind its whole prompt
ASKING = ("model", "adapter", "prompt_style", "chat_format", "dev", "primer", "shots", "dtype",
          "device", "shard")  # fmt: skip

Ids = list[int]
Logps = dict[str, list[float]]  # field -> the log-probability of each choice


@dataclass(frozen=True)
class ChoiceConfig:
    model: str | None = None  # folder with the model
    adapter: str | None = None  # folder with a LoRA adapter for it
    samples: str | None = None  # score the log-probabilities of an items.jsonl instead
    data: str | None = None  # file or folder of problems
    limit: int | None = None  # only the first so many problems (mmlu: of each subject)
    prompt_style: str = "text"  # text: the prompt is continued; chat: it is a user message
    chat_format: str = "auto"  # one of the chat formats; auto: detected from the checkpoint
    bins: int = 15  # of confidence, for calibration errors
    binning: str = "width"  # of these bins: equal width, or equal mass
    dtype: str | None = None  # float32, bfloat16 or float16; none: bfloat16 on CUDA, else float32
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    shard: bool = False  # under torchrun: share the weights among the ranks; else each has a copy
    out: str | None = None  # folder for the results
    baseline: str | None = None  # results folder of another policy on the same problems


@dataclass(frozen=True)
class Question:
    """A prompt and the texts that may follow it."""

    problem: int  # the index of the problem that it is asked for
    field: str  # what its log-probabilities are called there
    prompt: str
    choices: tuple[str, ...]  # with the space that stands before them
    group: str  # questions of a group begin alike
    shorter: tuple[
        str, ...
    ] = ()  # prompts that say less, for a model that the first is too long for


@dataclass(frozen=True)
class Task:
    name: str
    problems: Sequence[Mapping]
    questions: Sequence[Question]
    score: Callable[[Mapping, Logps], dict]  # a problem and what was found -> its item
    metrics: Callable[[Sequence[Mapping]], Metrics]
    form: str = ""  # what the names of the metrics begin with that reliability.json is made of
    flags: tuple[str, ...] = ("data", "limit")  # what says which problem an index is


def run_choices(config: ChoiceConfig, task: Task) -> list[dict]:
    """From the flags to the results in OUT and the table; out: the items, on rank 0."""
    check_config(config)
    digest = data_digest(config.data)
    known = (task.name, digest, len(task.problems))
    baseline = read_baseline(config.baseline, config.out, *known, task.metrics)
    if config.samples is not None:
        tell_unused(config, ASKING)
        found = read_logps(Path(config.samples), task)
    else:
        found = choice_logps(config, task)
    if not parallel.is_main():
        return []
    settings = asdict(config) | {"data_sha256": digest}
    if config.samples is not None:
        settings |= {name: None for name in ASKING if name in settings}
        settings["samples_sha256"] = data_digest(config.samples)
    pairs = enumerate(zip(task.problems, found, strict=True))
    items = [{"index": i} | task.score(problem, logps) for i, (problem, logps) in pairs]
    report(Path(config.out), task.name, settings, items, task.metrics, baseline)
    write_reliability(config, task.form)
    return items


def write_reliability(config: ChoiceConfig, form: str) -> None:
    """reliability.json: for each bin of confidence, how often the policy was right."""
    out = Path(config.out)
    values = json.loads((out / "values.json").read_text(encoding="utf-8"))
    confidence, correct = (np.array(values[form + name]) for name in ("confidence", "accuracy"))
    table = reliability_table(confidence, correct, config.bins, config.binning)
    write_text(out / "reliability.json", json.dumps(table, indent=2) + "\n")


def check_config(config: ChoiceConfig) -> None:
    """ValueError for flags out of range, missing, or contradicting each other."""
    if config.out is None:
        raise ValueError("--out expects a folder for the results, got none")
    if (config.model is None) == (config.samples is None):
        raise ValueError("expected either --model to ask, or --samples to score")
    if config.adapter is not None and config.model is None:
        raise ValueError("--adapter needs --model, the model that it belongs to")
    for flag in ("limit", "bins"):
        if (value := getattr(config, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} expects 1 or more, got {value}")
    for flag, known in (("prompt_style", STYLES), ("binning", BINNINGS)):
        if (value := getattr(config, flag)) not in known:
            raise ValueError(f"--{flag} expects {' or '.join(known)}, got {value!r}")
    if config.prompt_style == "text" and config.chat_format != "auto":
        raise ValueError(f"--chat_format {config.chat_format} needs --prompt_style chat")
    if config.dtype is not None and config.dtype not in DTYPES:
        raise ValueError(f"--dtype expects one of {', '.join(DTYPES)}, got {config.dtype!r}")
    if config.shard and parallel.world_size() == 1:
        raise ValueError("--shard needs more than one rank; start it with torchrun")
    if config.data is None or not Path(config.data).exists():
        raise FileNotFoundError(f"--data expects the problems, got {config.data}")
    if config.samples is not None and not Path(config.samples).is_file():
        raise FileNotFoundError(f"--samples expects a file, got {config.samples}")
    if config.model is not None and not Path(config.model).is_dir():
        raise FileNotFoundError(f"--model expects a folder with config.json, got {config.model}")


# ------------------------------------------------------------------------------------------------
# texts -> ids


def encode_questions(
    questions: Sequence[Question],
    chat_format: ChatFormat,
    tokenizer: Tokenizer,
    positions: int,
    chat: bool,
) -> tuple[list[Ids], list[list[Ids]], list[int]]:
    """Prompts, the choices of each, and which of a question's prompts it is (0: the first).

    Of its prompts a question takes the first that the model's positions hold, its choices included.
    """
    encode = encode_chat if chat else encode_jointly
    prompts, choices = [], []
    for start in range(0, len(questions), ENCODED):
        some = questions[start : start + ENCODED]
        more = encode(some, [q.prompt for q in some], chat_format, tokenizer)
        prompts += more[0]
        choices += more[1]
    level = [0] * len(questions)

    def tokens(i: int) -> int:
        return len(prompts[i]) + max(map(len, choices[i])) - 1

    while long := [i for i in range(len(questions)) if tokens(i) > positions]:
        for i in long:
            if level[i] == len(questions[i].shorter):
                raise ValueError(
                    f"problem {questions[i].problem} takes {tokens(i)} tokens; the model has "
                    f"{positions} positions, and there is no shorter prompt"
                )
        some = [questions[i] for i in long]
        texts = [questions[i].shorter[level[i]] for i in long]
        again = encode(some, texts, chat_format, tokenizer)
        for i, prompt, options in zip(long, *again, strict=True):
            prompts[i], choices[i] = prompt, options
            level[i] += 1
    return prompts, choices, level


def encode_jointly(
    questions: Sequence[Question],
    texts: Sequence[str],
    chat_format: ChatFormat,
    tokenizer: Tokenizer,
) -> tuple[list[Ids], list[list[Ids]]]:
    """Each choice with its prompt as one text; the prompt ends where their tokens part."""
    wholes = [
        [text, *(text + c for c in q.choices)] for q, text in zip(questions, texts, strict=True)
    ]
    flat = [[{"role": "user", "content": text}] for some in wholes for text in some]
    encoded = iter(encode_prompts(flat, chat_format, tokenizer))
    prompts, choices = [], []
    for some in wholes:
        alone, *joined = (next(encoded) for _ in some)
        end = min(shared_length(alone, ids) for ids in joined)
        prompts.append(alone[:end])
        choices.append([ids[end:] for ids in joined])
    return prompts, choices


def shared_length(a: Ids, b: Ids) -> int:
    """With how many equal ids both begin; a choice of its own is left to b."""
    length = min(len(a), len(b) - 1)
    if a[:length] == b[:length]:
        return length
    return next(i for i in range(length) if a[i] != b[i])


def encode_chat(
    questions: Sequence[Question],
    texts: Sequence[str],
    chat_format: ChatFormat,
    tokenizer: Tokenizer,
) -> tuple[list[Ids], list[list[Ids]]]:
    """The prompt as a user message, each choice as the beginning of the reply."""
    messages = [[{"role": "user", "content": text}] for text in texts]
    replies = [choice.strip() for q in questions for choice in q.choices]
    ended = iter(encode_completions(replies, chat_format, tokenizer))
    choices = [[next(ended)[:-1] for _ in q.choices] for q in questions]  # no end of the turn
    return encode_prompts(messages, chat_format, tokenizer), choices


def check_ids(prompts: Sequence[Ids], choices: Sequence[Sequence[Ids]], vocab_size: int) -> None:
    """ValueError for an id that the model does not have."""
    largest = max(max(ids) for ids in (*prompts, *(ids for some in choices for ids in some)))
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer gives id {largest}, but the model has a vocabulary of {vocab_size}; "
            "is the tokenizer that of the model?"
        )


# ------------------------------------------------------------------------------------------------
# ids -> log-probabilities


@dataclass(frozen=True)
class Forward:
    """Questions of one group that are scored together."""

    group: list[int]  # all questions of it
    parts: list[Part]  # of these


def choice_logps(config: ChoiceConfig, task: Task) -> list[Logps]:
    """Ask the model, into OUT/logps.jsonl; out: what was found for each problem, on rank 0."""
    device, dtype = choose_device(config.device, config.dtype)
    chat = config.prompt_style == "chat"
    asked = config.chat_format if chat else "none"
    tokenizer, chat_format, reason = read_formats(config.model, config.adapter, asked)
    print(f"chat format: {chat_format.name} ({reason if chat else 'a text to be continued'})")
    model = load_policy(config.model, config.adapter, dtype, device, config.shard)
    positions = model.config.max_position_embeddings
    encoded = encode_questions(task.questions, chat_format, tokenizer, positions, chat)
    check_ids(*encoded[:2], model.config.vocab_size)
    return ask_model(model, task, *encoded, Path(config.out) / "logps.jsonl")


def ask_model(
    model: Transformer,
    task: Task,
    prompts: Sequence[Ids],
    choices: Sequence[Sequence[Ids]],
    level: Sequence[int],
    file: Path,
) -> list[Logps]:
    """The log-probabilities of what `encode_questions` gave, through a file of forwards."""
    tell_shortened(level)
    forwards = plan_groups(task.questions, prompts, choices, level)
    settings = {
        "weights": hash_weights(model, adapters=True),
        "prompts": digest_of_ids(prompts),
        "choices": digest_of_ids([ids for some in choices for ids in some]),
        "packed_tokens": score.PACKED_TOKENS,
    }

    def make(own: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        return score_forwards(model, prompts, choices, forwards, own)

    write_rows(file, settings, len(forwards), make, model)
    return gather_logps(file, task, forwards) if parallel.is_main() else []


def tell_shortened(level: Sequence[int]) -> None:
    if any(level):
        print(f"{sum(n > 0 for n in level)} prompts were too long for the model and say less, "
              f"by up to {max(level)} exemplars")  # fmt: skip


def plan_groups(
    questions: Sequence[Question],
    prompts: Sequence[Ids],
    choices: Sequence[Sequence[Ids]],
    level: Sequence[int],
) -> list[Forward]:
    """All forwards; a group is what has the same exemplars."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, question in enumerate(questions):
        groups.setdefault((question.group, level[i]), []).append(i)
    forwards = []
    for group in groups.values():
        own = [prompts[i] for i in group], [choices[i] for i in group]
        parts = plan_forwards(*own, common_length(own[0]))
        forwards += [Forward(group, some) for some in parts]
    return forwards


def score_forwards(
    model: Transformer,
    prompts: Sequence[Ids],
    choices: Sequence[Sequence[Ids]],
    forwards: Sequence[Forward],
    own: Sequence[int],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of a forward, its row), in order; the bar counts questions."""
    total = sum(len(forwards[number].parts) for number in own)
    hide = not parallel.is_main() or not own
    group = None
    with tqdm(total=total, unit=" questions", disable=hide) as bar:
        for number in own:
            if forwards[number].group is not group:
                group = forwards[number].group
                some, options = [prompts[i] for i in group], [choices[i] for i in group]
                read = read_common(model, some)
            stats = score_parts(model, some, options, forwards[number].parts, read)
            yield number, {"logps": [one.logps.double().sum().item() for one in stats]}
            bar.update(len(forwards[number].parts))


def gather_logps(file: Path, task: Task, forwards: Sequence[Forward]) -> list[Logps]:
    """The rows of all forwards, sorted into problems."""
    found: list[Logps] = [{} for _ in task.problems]
    for (where, row), forward in zip(read_rows(file), forwards, strict=True):
        logps = iter(row["logps"])
        for part in forward.parts:
            question = task.questions[forward.group[part.prompt]]
            into = found[question.problem].setdefault(question.field, [])
            into += [next(logps) for _ in range(part.first, part.last)]
        if next(logps, None) is not None:
            raise ValueError(f"{where}: more log-probabilities than choices; remove {file}")
    return found


def read_logps(path: Path, task: Task) -> list[Logps]:
    """What an items.jsonl says of each problem, in `logps` or whatever fields the task has."""
    found: list[Logps | None] = [None] * len(task.problems)
    sizes = [{} for _ in task.problems]
    for question in task.questions:
        sizes[question.problem][question.field] = len(question.choices)
    for where, row in read_rows(path):
        index = row.get("index")
        if type(index) is not int or index < 0:
            raise ValueError(f"{where}: expected the index of a problem, got {index!r}")
        if index >= len(found):  # left out by --limit
            continue
        if found[index] is not None:
            raise ValueError(f"{where}: problem {index} stands there twice")
        found[index] = {
            field: check_logps(row.get(field), size, f"{where}: {field}")
            for field, size in sizes[index].items()
        }
        check_question(row, task.score(task.problems[index], found[index]), task.flags, where)
    missing = [i for i, logps in enumerate(found) if logps is None]
    if missing:
        raise ValueError(
            f"{path}: nothing on {len(missing)} of {len(found)} problems, the first is "
            f"{missing[0]}; pass the --data it was made from, or --limit"
        )
    return found


def check_question(said: Mapping, item: Mapping, flags: Sequence[str], where: str) -> None:
    """ValueError where a stored item says something of its question that is not so here."""
    for name, here in item.items():
        if isinstance(here, str | int) and (there := said.get(name, here)) != here:
            raise ValueError(
                f"{where}: {name}: expected {here!r}, got {there!r}: not an item of this question; "
                f"pass --{', --'.join(flags)} as they were when it was made"
            )


def check_logps(values: object, size: int, where: str) -> list[float]:
    numbers = isinstance(values, list) and all(type(v) in (int, float) for v in values)
    if not numbers or len(values) != size or not all(-float("inf") < v <= 1e-3 for v in values):
        raise ValueError(f"{where}: expected {size} log-probabilities, got {values!r}")
    return [float(v) for v in values]
