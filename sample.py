"""Prompts in, completions out: JSON lines, or the text alone of a single one without --out.

    python sample.py                                        a chat with the embedded model
    python sample.py --prompt "Tom has 3 apples ..."        one answer, as it is drawn
    python sample.py --model DIR --adapter runs/DIR --prompts FILE.jsonl --n 8 --out samples.jsonl
    python sample.py --model DIR --adapter runs/DIR --merge_to MERGED
    cat questions.txt | python sample.py --temperature 0    a prompt a line, from standard input
    torchrun --nproc_per_node=8 sample.py --model DIR --prompts FILE.jsonl --out samples.jsonl

A prompt file has one prompt a line (.txt), or one object a line (.jsonl, .jsonl.gz) with `prompt`
(a text, or messages), `messages` or `question`. A row of the results:

    {"index": number of the prompt, from 0, "prompt": as given, "completions": [text, ...],
     "tokens": [count, ...], "logps": [sum over the tokens, at temperature 1, ...],
     "finish_reasons": ["stop" or "length", ...]}

Counts and logps include the end-of-turn token; --reference_logps adds those of the model without
its adapter. A completion depends on the model, its prompt, --seed, the prompt's index and the
completion's number alone: --n 8 has the completions of --n 4. Rows are written as they finish; the
same command goes on where it was stopped.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from torch import Tensor

from data.chat import ChatFormat, Message, encode_prompt
from data.formats import mark_formats, model_ids, read_formats
from data.prompts import Prompt, Replies, prompt_lines, read_prompts, text_prompt, with_system
from data.rows import refuse_overwriting
from data.tokenizer import REPLACEMENT, Tokenizer
from model import parallel
from model.adapter import load_policy
from model.checkpoint import DTYPES, save_model
from model.config import parse_config
from model.generate import Completion, check_prompt, generate
from model.linear import packed_linears
from model.run import choose_device, run_main
from model.samples import Drawing, complete, describe_completions, write_samples
from model.sampling import Sampling, completion_seeds
from model.transformer import Transformer


@dataclass(frozen=True)
class SampleConfig:
    model: str = "data/tiny"  # folder of a Llama or Mistral checkpoint
    adapter: str | None = None  # folder with a LoRA adapter for it
    merge_to: str | None = None  # write the model with its adapter merged, float32, to this folder
    prompt: str | None = None  # one prompt
    prompts: str | None = None  # file of prompts: .txt, .jsonl, .jsonl.gz
    n: int = 1  # completions per prompt
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # draw from the most probable tokens that hold this mass; 1: from all
    top_k: int = 0  # draw from the k most probable tokens; 0: from all
    min_p: float = 0.0  # draw from tokens this times as probable as the first; 0: from all
    max_new_tokens: int = 256  # per completion; it also ends where the model's positions do
    seed: int = 0  # of the draws
    stop: tuple[str, ...] = ()  # texts that end a completion, and are cut off with what follows
    chat_format: str = "auto"  # one of the chat formats; auto: detected from the checkpoint
    system: str | None = None  # system message before every prompt that has none
    dtype: str | None = None  # float32, bfloat16 or float16; none: bfloat16 on CUDA, else float32
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    cache_gb: float = 1.0  # memory for keys and values; it bounds what is generated at a time
    shard: bool = False  # under torchrun: share the weights among the ranks; else each has a copy
    reference_logps: bool = False  # rows get log-probabilities without the adapter too
    out: str | None = None  # JSONL file for the results


def main() -> None:
    config = parse_config(SampleConfig)
    sampling = check_config(config)
    prompts = gather_prompts(config)
    asked = config.model, config.adapter, config.chat_format
    tokenizer, chat_format, reason = read_formats(*asked)
    parallel.note(f"chat format: {chat_format.name} ({reason})")
    exact = "float32" if config.merge_to is not None else None  # bfloat16 rounds an adapter away
    with contextlib.redirect_stdout(sys.stderr if parallel.is_main() else sys.stdout):
        device, dtype = choose_device(config.device, config.dtype or exact)
    model = load_policy(config.model, config.adapter, dtype, device, config.shard)
    if config.merge_to is not None:
        ids = model_ids(chat_format, tokenizer)
        save_model(model, config.merge_to, tokenizer.files, **ids)
        if parallel.is_main():
            mark_formats(Path(config.merge_to), config.model, tokenizer, chat_format)
        parallel.note(f"merged model: {config.merge_to}")
    if prompts is None and config.merge_to is not None:
        return
    sampler = Sampler(model, tokenizer, chat_format, config, sampling)
    if prompts is None:
        with packed_linears(model, dtype):  # once, not for each answer
            chat(sampler)
        return
    if config.out is not None:
        reference = None
        if config.reference_logps:
            reference = load_policy(config.model, None, dtype, device)
        sampler.write(prompts, Path(config.out), reference)
    elif len(prompts) == config.n == 1:
        stream(sampler, sampler.encode(prompts[0]), 0)
    else:
        for row in sampler.rows(prompts):
            print(json.dumps(row, ensure_ascii=False), flush=True)


def check_config(config: SampleConfig) -> Sampling:
    """ValueError for values out of range and flags that contradict each other."""
    if config.prompt is not None and config.prompts is not None:
        raise ValueError("--prompt and --prompts exclude each other; pass one of them")
    if config.prompt is not None and not config.prompt.strip():
        raise ValueError("--prompt expects a text, got an empty one")
    if not Path(config.model).is_dir():
        raise FileNotFoundError(f"--model expects a folder with config.json, got {config.model}")
    if config.n < 1:
        raise ValueError(f"--n expects 1 or more, got {config.n}")
    if config.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens expects 1 or more, got {config.max_new_tokens}")
    if config.shard and parallel.world_size() == 1:
        raise ValueError("--shard needs more than one rank; start sample.py with torchrun")
    if parallel.world_size() > 1 and config.out is None and config.merge_to is None:
        raise ValueError("under torchrun sample.py expects --out FILE, and prompts")
    if config.reference_logps and (config.adapter is None or config.out is None):
        raise ValueError("--reference_logps is for an --adapter, and goes into the rows of --out")
    if config.reference_logps and config.shard:
        raise ValueError("--reference_logps and --shard exclude each other")
    if config.cache_gb <= 0:
        raise ValueError(f"--cache_gb expects a number above 0, got {config.cache_gb}")
    if "" in config.stop:
        raise ValueError("--stop expects texts, got an empty one")
    if config.dtype is not None and config.dtype not in DTYPES:
        raise ValueError(f"--dtype expects one of {', '.join(DTYPES)}, got {config.dtype!r}")
    if config.merge_to is not None and config.dtype not in (None, "float32"):
        raise ValueError(
            f"--merge_to needs --dtype float32, got {config.dtype}: it rounds an adapter away"
        )
    if config.merge_to is not None and config.adapter is None:
        raise ValueError("--merge_to writes a merged adapter; pass --adapter DIR too")
    if config.merge_to is not None and Path(config.merge_to).exists():
        raise ValueError(f"--merge_to expects a new folder, {config.merge_to} is there already")
    if config.out is not None and Path(config.out).is_dir():
        raise ValueError(f"--out expects a file, got the folder {config.out}")
    if config.out and config.prompts:
        refuse_overwriting(Path(config.out), [Path(config.prompts)], f"--out {config.out}")
    completion_seeds(config.seed, 0, 1)
    return Sampling(config.temperature, config.top_k, config.top_p, config.min_p)


# ------------------------------------------------------------------------------------------------
# prompts


def gather_prompts(config: SampleConfig) -> list[Prompt] | None:
    """From --prompt, --prompts or standard input; None: nothing is given, so chat (or merge)."""
    if config.prompt is not None:
        prompts = [text_prompt(config.prompt, "--prompt")]
    elif config.prompts is not None:
        prompts = read_prompts(Path(config.prompts))
    elif config.merge_to is not None or sys.stdin is None or sys.stdin.isatty():
        if config.out is not None or config.n != 1:
            raise ValueError("--out and --n need prompts; pass --prompt or --prompts")
        return None
    else:
        if parallel.world_size() > 1:
            raise ValueError("ranks share one standard input; pass --prompts FILE under torchrun")
        prompts = prompt_lines(sys.stdin.buffer.read(), "standard input")
        if not prompts:
            raise ValueError("standard input has no prompt; pass --prompt, --prompts or a line")
    return [with_system(prompt, config.system) for prompt in prompts]


# ------------------------------------------------------------------------------------------------
# completions


class Sampler:
    """A policy with its tokenizer, its chat format and how it is sampled."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        config: SampleConfig,
        sampling: Sampling,
    ) -> None:
        self.model, self.tokenizer, self.chat_format = model, tokenizer, chat_format
        self.config = config
        self.replies = Replies(chat_format, tokenizer, config.stop)
        self.find_stop = self.replies.find_stop if config.stop else None
        self.drawing = Drawing(
            config.n,
            config.max_new_tokens,
            sampling,
            config.seed,
            self.replies.stop_ids,
            config.stop,
        )

    @property
    def positions(self) -> int:
        return self.model.config.max_position_embeddings

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids; ValueError, naming file:line, if the format or the model cannot take it."""
        try:
            ids = encode_prompt(prompt.messages, self.chat_format, self.tokenizer)
        except ValueError as error:
            raise ValueError(f"{prompt.where}: {error}") from None
        check_prompt(self.model, ids, prompt.where)
        return ids

    def write(self, prompts: list[Prompt], out: Path, reference: Transformer | None) -> None:
        """One JSON line for each prompt, as soon as its completions are there."""
        encoded = [self.encode(prompt) for prompt in prompts]
        records = [{"prompt": prompt.record} for prompt in prompts]
        budget = int(self.config.cache_gb * 1e9)
        write_samples(
            self.model,
            encoded,
            self.drawing,
            out,
            self.replies.text,
            self.find_stop,
            records,
            reference,
            budget,
        )
        parallel.note(f"{len(prompts)} prompts: {out}")

    def rows(self, prompts: list[Prompt]) -> Iterator[dict]:
        """One row of results for each prompt, in their order."""
        encoded = [self.encode(prompt) for prompt in prompts]
        budget, waiting = int(self.config.cache_gb * 1e9), {}
        drawn = complete(
            self.model, encoded, range(len(prompts)), self.drawing, self.find_stop, budget, False
        )
        following = 0
        for index, completions in drawn:
            waiting[index] = completions
            while following in waiting:
                row = describe_completions(waiting.pop(following), self.replies.text)
                yield {"index": following, "prompt": prompts[following].record} | row
                following += 1

    def draw(
        self, ids: list[int], index: int, on_tokens: Callable[[list[int], Tensor], object]
    ) -> Completion:
        """One completion of a prompt, told token by token."""
        [(_, completion)] = generate(
            self.model,
            [ids],
            completion_seeds(self.config.seed, index, 1),
            self.config.max_new_tokens,
            self.drawing.sampling,
            self.replies.stop_ids,
            self.find_stop,
            on_tokens,
        )
        return completion


# ------------------------------------------------------------------------------------------------
# at the terminal


class Printer:
    """Prints a growing text; what may still change is held back.

    That is a character whose bytes are not all there, and what may begin a stop string.
    """

    def __init__(self, sampler: Sampler, file: TextIO) -> None:
        self.sampler, self.file = sampler, file
        self.ids: list[int] = []
        self.text = ""  # printed so far

    def add(self, indices: list[int], tokens: Tensor) -> None:
        """Of one completion."""
        self.ids += tokens.tolist()
        text = self.sampler.replies.text(self.ids).rstrip(REPLACEMENT)
        self.write(text[: len(text) - self.held_back(text)])

    def held_back(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string may begin."""
        starts = [stop[:i] for stop in self.sampler.replies.stop for i in range(1, len(stop))]
        return max((len(start) for start in starts if text.endswith(start)), default=0)

    def write(self, text: str) -> None:
        if len(text) > len(self.text):
            self.file.write(text[len(self.text) :])
            self.file.flush()
            self.text = text

    def finish(self) -> str:
        """Print what was held back, and end the line; out: the whole text."""
        text = self.sampler.replies.text(self.ids)
        self.write(text)
        self.file.write("\n")
        self.file.flush()
        return text


def stream(sampler: Sampler, ids: list[int], index: int) -> str:
    """One completion, printed as it is drawn; Ctrl-C ends it. out: its text."""
    printer = Printer(sampler, sys.stdout)
    with contextlib.suppress(KeyboardInterrupt):
        printer.ids = sampler.draw(ids, index, printer.add).ids  # nothing behind a stop text
    return printer.finish()


def chat(sampler: Sampler) -> None:
    """A conversation of many turns."""
    with contextlib.suppress(ImportError):  # line editing, where Python has it
        import readline  # noqa: F401
    parallel.note("Ctrl-D or /exit ends the chat, Ctrl-C an answer.")
    history: list[Message] = []
    turn = 0
    while (said := ask()) is not None:
        if not said.strip():
            continue
        longer = [*history, {"role": "user", "content": said}]
        fitting, ids = fit(sampler, longer)
        if len(ids) >= sampler.positions:
            parallel.note(f"this message is longer than the model's {sampler.positions} positions")
            continue
        if sampler.chat_format.name != "none" and len(fitting) < len(longer):
            parallel.note("(the conversation is long: its oldest turns are forgotten)")
        history = fitting
        answer = stream(sampler, ids, turn)
        turn += 1
        if answer.strip():
            history.append({"role": "assistant", "content": answer})
        else:
            history.pop()


def ask() -> str | None:
    """The next line of the user; None at the end."""
    while True:
        try:
            said = input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit ends the chat)")
            continue
        return None if said.strip() == "/exit" else said


def fit(sampler: Sampler, history: list[Message]) -> tuple[list[Message], list[int]]:
    """The history, and its ids, without the oldest turns where they leave an answer no room.

    Room is --max_new_tokens, or a quarter of the model's positions where that is less. Chat format
    none continues one text: it has no history.
    """
    config = sampler.config
    if sampler.chat_format.name == "none":
        history = history[-1:]
    while True:
        prompt = with_system(Prompt(history, "chat", history), config.system)
        ids = encode_prompt(prompt.messages, sampler.chat_format, sampler.tokenizer)
        room = sampler.positions - len(ids)
        if len(history) == 1 or room >= min(config.max_new_tokens, sampler.positions // 4):
            return history, ids
        history = history[2:]


if __name__ == "__main__":
    run_main(main)
