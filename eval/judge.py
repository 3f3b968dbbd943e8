"""Who judges: questions in, texts out, each kept as it comes.

    --judge_model DIR     a local chat checkpoint, through our own generator
    --judge_url URL       an OpenAI-compatible endpoint, with --judge_name and a key from the
                          environment variable OPENAI_API_KEY
    --judgements FILE     what an earlier run has left, or what was made elsewhere

OUT gets questions.jsonl, `{"index", "messages"}`, what is asked; and judgements.jsonl, `{"index",
"question": SHA-256 of the messages, "model", "finish_reason", "text"}`, a row appended as soon as
it is there: the same command goes on where it was stopped, and asks nothing twice. Judgements made
elsewhere need `index` and `text`; those with a `question` have to be of the same. A local judge
whose chat format has no system message finds the instructions at the top of the user's.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data.chat import ChatFormat, Message, detect_chat_format, encode_prompts
from data.prompts import Replies, row_prompt
from data.rows import check_text, read_rows
from data.tokenizer import Tokenizer, load_tokenizer
from eval.benchmark import read_completions
from eval.endpoint import Endpoint, Reply, ask_many, check_key, check_url
from eval.results import Metrics, json_digest, read_baseline, read_results, report
from model import parallel
from model.adapter import load_policy
from model.checkpoint import DTYPES
from model.generate import check_prompt
from model.resumable import write_rows
from model.run import choose_device, write_text
from model.samples import Drawing, complete, describe
from model.sampling import Sampling
from model.transformer import Transformer

Question = Sequence[Message]


@dataclass(frozen=True)
class JudgeConfig:
    data: str | None = None  # file of prompts
    samples: str | None = None  # what is judged: completions of sample.py for these prompts
    limit: int | None = None  # only the first so many prompts
    judge_model: str | None = None  # folder with a local chat model that judges
    judge_url: str | None = None  # OpenAI-compatible endpoint that judges: https://HOST/v1
    judge_name: str | None = None  # what the endpoint calls the model
    judge_chat_format: str = "auto"  # of --judge_model; auto: detected from the checkpoint
    judge_key_variable: str | None = "OPENAI_API_KEY"  # environment variable with its key
    judge_temperature: float | None = 0.0  # 0 is greedy; none leaves it to the endpoint
    judge_max_tokens: int | None = 4096  # of a judgement; none leaves it to the endpoint
    judge_workers: int = 8  # requests at a time
    judge_timeout: float = 300.0  # seconds without a byte before a request counts as failed
    judge_prompt: str | None = None  # text file with other instructions for the judge
    judgements: str | None = None  # judgements that are there already
    dtype: str | None = None  # of --judge_model; none: bfloat16 on CUDA, else float32
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    cache_gb: float = 1.0  # memory for keys and values; it bounds what is generated at a time
    shard: bool = False  # under torchrun: share the weights among the ranks; else each has a copy
    out: str | None = None  # folder for the results
    baseline: str | None = None  # results folder of another policy, judged on the same prompts


def check_config(config: JudgeConfig) -> None:
    """ValueError for flags out of range, missing, or contradicting each other."""
    if config.out is None:
        raise ValueError("--out expects a folder for the results, got none")
    for flag in ("data", "samples"):
        if (path := getattr(config, flag)) is None or not Path(path).is_file():
            raise FileNotFoundError(f"--{flag} expects a file, got {path}")
    judges = (config.judge_model, config.judge_url, config.judgements)
    if sum(judge is not None for judge in judges) > 1:
        raise ValueError("expected one of --judge_model, --judge_url and --judgements, got more")
    for flag in ("limit", "judge_workers", "judge_max_tokens"):
        if (value := getattr(config, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} expects 1 or more, got {value}")
    for flag in ("judge_timeout", "cache_gb"):
        if (value := getattr(config, flag)) <= 0:
            raise ValueError(f"--{flag} expects a number above 0, got {value}")
    if config.judge_temperature is not None and config.judge_temperature < 0:
        raise ValueError(f"--judge_temperature expects 0 or more, got {config.judge_temperature}")
    if config.dtype is not None and config.dtype not in DTYPES:
        raise ValueError(f"--dtype expects one of {', '.join(DTYPES)}, got {config.dtype!r}")
    if config.judge_url is not None:
        endpoint_of(config)
    elif config.judge_name is not None:
        raise ValueError("--judge_name is for --judge_url, the endpoint that has the model")
    if config.judge_model is not None:
        check_local(config)
    elif config.judge_chat_format != "auto":
        raise ValueError("--judge_chat_format is for --judge_model, the checkpoint that judges")


def check_local(config: JudgeConfig) -> None:
    if not Path(config.judge_model).is_dir():
        raise FileNotFoundError(f"--judge_model expects a folder, got {config.judge_model}")
    if config.judge_temperature is None or config.judge_max_tokens is None:
        raise ValueError("--judge_temperature and --judge_max_tokens: none is for --judge_url")
    if config.shard and parallel.world_size() == 1:
        raise ValueError("--shard needs more than one rank; start it with torchrun")


# ------------------------------------------------------------------------------------------------
# prompts and questions


def read_problems(config: JudgeConfig) -> list[dict]:
    """{"prompt": text, "uid", "category"} of the first --limit rows of --data."""
    problems = []
    for where, row in islice(read_rows(Path(config.data)), config.limit):
        problem = {"prompt": show_dialogue(row_prompt(row, where).messages)}
        for key in ("uid", "category"):
            value = row.get(key)
            problem[key] = None if value is None else check_text(value, key, where)
        problems.append(problem)
    if not problems:
        raise ValueError(f"{config.data}: no prompt in it; pass --data FILE")
    return problems


def read_asked(path: Path, problems: Sequence[Mapping]) -> list[list[str]]:
    """The completions of each problem; ValueError for a row whose own prompt is another one."""
    completions = read_completions(path, len(problems), ())
    for where, row in read_rows(path):
        if row.get("prompt") is None or row["index"] >= len(problems):
            continue
        ours = problems[row["index"]]["prompt"]
        theirs = show_dialogue(row_prompt(row, where).messages)
        if ours != theirs:
            raise ValueError(
                f"{where}: expected a completion of problem {row['index']}, {ours[:60]!r}, got one "
                f"of {theirs[:60]!r}; pass the --data that the samples were made from"
            )
    return completions


def read_instructions(path: str | None) -> str | None:
    """The text of --judge_prompt."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"--judge_prompt expects a text file, got {path}")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--judge_prompt {path}: expected UTF-8, {error}") from None
    if not text.strip():
        raise ValueError(f"--judge_prompt {path}: expected instructions, got an empty file")
    return text.strip()


def show_dialogue(messages: Question) -> str:
    """One message is its text; of several each has its role before it."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in messages)


def write_questions(out: Path, questions: Sequence[Question]) -> None:
    """questions.jsonl; by the first rank alone."""
    if not parallel.is_main():
        return
    out.mkdir(parents=True, exist_ok=True)
    rows = ({"index": i, "messages": list(question)} for i, question in enumerate(questions))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(out / "questions.jsonl", "".join(lines))


# ------------------------------------------------------------------------------------------------
# answers


def judge(config: JudgeConfig, questions: Sequence[Question]) -> list[dict]:
    """{"text", "model", "finish_reason"} for each question; [] on all ranks but the first."""
    if config.judgements is not None:
        return read_judgements(Path(config.judgements), questions) if parallel.is_main() else []
    out = Path(config.out)
    file = out / "judgements.jsonl"
    if config.judge_model is not None:
        ask_local(config, questions, file)
    elif config.judge_url is not None:
        ask_remote(config, questions, file)
    else:
        write_questions(out, questions)
        raise ValueError(
            f"expected --judge_model or --judge_url, got no judge; what it would be asked is in "
            f"{out / 'questions.jsonl'}: answered elsewhere, pass --judgements FILE"
        )
    return read_judgements(file, questions) if parallel.is_main() else []


def read_judgements(path: Path, questions: Sequence[Question]) -> list[dict]:
    """The judgement of each question; ValueError for one that is missing or of another question."""
    if not path.is_file():
        raise FileNotFoundError(f"--judgements expects a file, got {path}")
    found: dict[int, dict] = {}
    for where, row in read_rows(path):
        index = row.get("index")
        if type(index) is not int or index < 0 or index in found:
            raise ValueError(f"{where}: expected an index not yet seen, got {index!r}")
        text = check_text(row.get("text"), "text", where)
        if index < len(questions) and row.get("question") not in (
            None,
            json_digest(questions[index]),
        ):
            raise ValueError(f"{where}: the judgement of another question than is asked here")
        found[index] = {"text": text} | {key: row.get(key) for key in ("model", "finish_reason")}
    missing = [index for index in range(len(questions)) if index not in found]
    if missing:
        raise ValueError(
            f"{path}: no judgement for {len(missing)} of {len(questions)} questions, the first is "
            f"{missing[0]}"
        )
    return [found[index] for index in range(len(questions))]


def write_judgements(
    out: Path,
    settings: Mapping[str, Any],
    questions: Sequence[Question],
    make: Callable[[list[int]], Iterator[tuple[int, dict]]],
    model: Transformer | None = None,
) -> None:
    """`write_rows`, and questions.jsonl beside them as soon as it is known that they belong."""

    def make_rows(own: list[int]) -> Iterator[tuple[int, dict]]:
        write_questions(out.parent, questions)
        yield from make(own)

    write_rows(out, settings, len(questions), make_rows, model)


def ask_local(config: JudgeConfig, questions: Sequence[Question], out: Path) -> None:
    """The judgements of a local model into the file `out`."""
    device, dtype = choose_device(config.device, config.dtype)
    tokenizer = load_tokenizer(config.judge_model)
    chat_format = judge_chat_format(config, tokenizer)
    model = load_policy(config.judge_model, None, dtype, device, config.shard)
    asked = [fold_system(question, chat_format) for question in questions]
    prompts = encode_prompts(asked, chat_format, tokenizer)
    for i, prompt in enumerate(prompts):
        check_prompt(model, prompt, f"question {i}")
    replies = Replies(chat_format, tokenizer)
    sampling = Sampling(config.judge_temperature)
    drawing = Drawing(1, config.judge_max_tokens, sampling, 0, replies.stop_ids)
    cache_bytes = int(config.cache_gb * 1e9)

    def make(own: list[int]) -> Iterator[tuple[int, dict]]:
        for index, (completion,) in complete(model, prompts, own, drawing, None, cache_bytes):
            reply = Reply(
                replies.text(completion.ids), config.judge_model, completion.finish_reason
            )
            yield index, judgement_row(questions[index], reply)

    write_judgements(out, describe(model, prompts, drawing, None), questions, make, model)


def judge_chat_format(config: JudgeConfig, tokenizer: Tokenizer) -> ChatFormat:
    """The format of --judge_model, printed; a ValueError names the flag as it is called here."""
    asked = config.judge_model, tokenizer, config.judge_chat_format
    try:
        found, reason = detect_chat_format(*asked)
    except ValueError as error:
        message = str(error).replace("--chat_format", "--judge_chat_format")
        raise ValueError(message) from None
    print(f"chat format: {found.name} ({reason.replace('--chat_format', '--judge_chat_format')})")
    return found


def fold_system(question: Question, chat_format: ChatFormat) -> Question:
    """The question, its instructions in the user's message where the format has no other place."""
    if chat_format.system or chat_format.system_in_user or question[0]["role"] != "system":
        return question
    system, user, *others = question
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *others]


def ask_remote(config: JudgeConfig, questions: Sequence[Question], out: Path) -> None:
    """The judgements of an endpoint into the file `out`."""
    endpoint = endpoint_of(config)
    key = (
        "without a key" if endpoint.key is None else f"with the key in {config.judge_key_variable}"
    )
    parallel.note(f"judge: {endpoint.name} at {endpoint.url}, {key}")
    settings = {  # not the address, which may change when a server is started again
        "judge_name": endpoint.name,
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.max_tokens,
        "questions": json_digest([list(question) for question in questions]),
    }

    def make(own: list[int]) -> Iterator[tuple[int, dict]]:
        try:
            for index, reply in ask_many(
                endpoint, questions, own, config.judge_workers, parallel.is_main()
            ):
                yield index, judgement_row(questions[index], reply)
        except (ValueError, ConnectionError) as error:
            kept = f"what came is in {out}; the same command goes on"
            raise type(error)(f"{error}\n{kept}") from None

    write_judgements(out, settings, questions, make)


def endpoint_of(config: JudgeConfig) -> Endpoint:
    check_url(config.judge_url)
    if config.judge_name is None:
        raise ValueError("--judge_url needs --judge_name, what the endpoint calls the model")
    variable = config.judge_key_variable
    key = None if variable is None else os.environ.get(variable)
    if key is None and variable not in (None, "OPENAI_API_KEY"):
        raise ValueError(f"--judge_key_variable: the environment variable {variable} is not set")
    return Endpoint(
        config.judge_url,
        config.judge_name,
        config.judge_temperature,
        config.judge_max_tokens,
        config.judge_timeout,
        None if key is None else check_key(key, variable),
    )


def judgement_row(question: Question, reply: Reply) -> dict:
    return {
        "question": json_digest(list(question)),
        "model": reply.model,
        "finish_reason": reply.finish_reason,
        "text": reply.text,
    }


# ------------------------------------------------------------------------------------------------
# results

MetricsOf = Callable[[Sequence[Mapping], frozenset[int]], Metrics]  # items, indices left out


def unknown(items: Sequence[Mapping]) -> frozenset[int]:
    """Indices of the prompts whose judgement cannot be read."""
    return frozenset(item["index"] for item in items if not item["known"])


def check_baseline(
    config: JudgeConfig, task: str, settings: Mapping, problems: int, metrics_of: MetricsOf
) -> None:
    """ValueError unless --baseline was judged on the same prompts in the same way."""

    def metrics_of_all(items: Sequence[Mapping]) -> Metrics:
        return metrics_of(items, unknown(items))

    data = settings["data_sha256"]
    read_baseline(config.baseline, config.out, task, data, problems, metrics_of_all)
    if config.baseline is None:
        return
    before = read_results(Path(config.baseline))[0]["settings"]
    keys = ["n", "baseline_answers_sha256", "instructions_sha256"]
    if config.judgements is None and before.get("judgements") is None:
        keys += ["judge_name", "judge_model"]
    for key in keys:
        there, here = before.get(key), settings.get(key)
        if there != here:
            raise ValueError(
                f"--baseline {config.baseline}: expected results with the same {key}, "
                f"got {there}, now {here}"
            )


def report_judged(
    config: JudgeConfig,
    task: str,
    settings: Mapping,
    judgements: Sequence[Mapping],
    items: Sequence[Mapping],
    metrics_of: MetricsOf,
) -> None:
    """Write and print the results over the prompts that are known here and in --baseline."""
    left_out, baseline = unknown(items), None
    if config.baseline is not None:
        before = read_results(Path(config.baseline))[1]
        left_out |= unknown(before)
        baseline = metrics_of(before, left_out)
    judges = sorted({str(judgement["model"] or "unknown") for judgement in judgements})
    settings = dict(settings) | {"judges": judges, "left_out": len(left_out)}
    print(f"judged by {', '.join(judges)}; {len(left_out)} of {len(items)} prompts left out")
    if cut := sum(judgement["finish_reason"] == "length" for judgement in judgements):
        print(f"{cut} of {len(judgements)} judgements were cut at the judge's limit of tokens")
    out, metrics = Path(config.out), partial(metrics_of, left_out=left_out)
    report(out, task, settings, items, metrics, baseline)
