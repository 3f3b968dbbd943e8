"""Prompts in, completions out: text at the terminal, JSON lines in files and pipes.

    python sample.py                                        a chat with the embedded model
    python sample.py --prompt "Tom has 3 apples ..."        one answer, as it is drawn
    python sample.py --model DIR --adapter runs/DIR --prompts FILE.jsonl --n 8 --out samples.jsonl
    python sample.py --model DIR --adapter runs/DIR --merge_to MERGED
    cat questions.txt | python sample.py --temperature 0    a prompt a line, from standard input
    torchrun --nproc_per_node=8 sample.py --model DIR --prompts FILE.jsonl --out samples.jsonl

A prompt file has one prompt a line (.txt), or one object a line (.jsonl, .jsonl.gz) with `prompt`
(a text, or messages), `messages` or `question`. A row of the results:

    {"index": row of the prompt file, from 0, "prompt": as given, "completions": [text, ...],
     "tokens": [count, ...], "logps": [sum over the tokens, at temperature 1, ...],
     "finish_reasons": ["stop" or "length", ...]}

Counts and logps include the end-of-turn token. A completion depends on the model, its prompt,
--seed, the prompt's index and the completion's number alone: --n 8 has the completions of --n 4.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from data.chat import ChatFormat, Message, detect_chat_format, encode_prompt, stop_ids
from data.prompts import (
    Prompt,
    completion_text,
    prompt_lines,
    read_prompts,
    text_prompt,
    with_system,
)
from data.tokenizer import REPLACEMENT, Tokenizer, load_tokenizer
from model import parallel
from model.adapter import load_policy
from model.checkpoint import DTYPES, save_model
from model.config import parse_config
from model.generate import Completion, Sampling, check_prompt, completion_seeds, generate
from model.run import choose_device, run_main
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
    out: str | None = None  # JSONL file for the results


def main() -> None:
    config = parse_config(SampleConfig)
    sampling = check_config(config)
    prompts = gather_prompts(config)
    tokenizer = load_tokenizer(config.model)
    asked = None if config.chat_format == "auto" else config.chat_format
    chat_format, reason = detect_chat_format(config.model, tokenizer, asked)
    note(f"chat format: {chat_format.name} ({reason})")
    exact = "float32" if config.merge_to is not None else None  # bfloat16 rounds an adapter away
    with contextlib.redirect_stdout(sys.stderr if parallel.is_main() else sys.stdout):
        device, dtype = choose_device(config.device, config.dtype or exact)
    model = load_policy(config.model, config.adapter, dtype, device, config.shard)
    if config.merge_to is not None:
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        save_model(model, config.merge_to, tokenizer.files, **ids)
        note(f"merged model: {config.merge_to}")
    if prompts is None and config.merge_to is not None:
        return
    sampler = Sampler(model, tokenizer, chat_format, config, sampling)
    if prompts is None:
        chat(sampler)
        return
    encoded = [sampler.encode(prompt) for prompt in prompts]
    if config.out is not None:
        with parallel.in_lockstep(model):
            write_samples(sampler, prompts, encoded, Path(config.out))
        join_samples(len(prompts), Path(config.out))
    elif len(prompts) == config.n == 1:
        stream(sampler, encoded[0], 0)
    else:
        for row in sampler.rows(prompts, encoded):
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
    if (
        config.out
        and config.prompts
        and Path(config.out).resolve() == Path(config.prompts).resolve()
    ):
        raise ValueError(f"--out {config.out} would overwrite --prompts; pass another file")
    completion_seeds(config.seed, 0, 1)
    return Sampling(config.temperature, config.top_k, config.top_p, config.min_p)


def note(text: str) -> None:
    """For the reader, not for the pipe."""
    if parallel.is_main():
        print(text, file=sys.stderr)


# ------------------------------------------------------------------------------------------------
# prompts


def gather_prompts(config: SampleConfig) -> list[Prompt] | None:
    """From --prompt, --prompts or standard input; None: nothing is given, so chat (or merge)."""
    if config.prompt is not None:
        prompts = [text_prompt(config.prompt, "--prompt")]
    elif config.prompts is not None:
        prompts = read_prompts(Path(config.prompts))
    elif config.merge_to is not None or sys.stdin.isatty():
        if config.out is not None or config.n != 1:
            raise ValueError("--out and --n need prompts; pass --prompt or --prompts")
        return None
    else:
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
        self.config, self.sampling = config, sampling
        self.stop_ids = stop_ids(chat_format, tokenizer)
        # A stop string lies in the last tokens: each adds at least a byte, but for special ones.
        self.tail = 8 + max((len(text.encode()) for text in config.stop), default=0)

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

    def draw(
        self,
        prompts: list[list[int]],
        seeds: list[int],
        on_token: Callable[[int, int], object] | None,
    ) -> Iterator[Completion]:
        return generate(
            self.model,
            prompts,
            seeds,
            self.config.max_new_tokens,
            self.sampling,
            self.stop_ids,
            self.is_stopped if self.config.stop else None,
            on_token,
            int(self.config.cache_gb * 1e9),
        )

    def is_stopped(self, ids: list[int]) -> bool:
        text = self.tokenizer.decode_continuation(ids[-self.tail :])
        return any(stop in text for stop in self.config.stop)

    def text(self, ids: list[int]) -> str:
        """What a completion says: without its end-of-turn token, cut before a stop string."""
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        text = completion_text(ids, self.chat_format, self.tokenizer)
        cuts = [text.index(stop) for stop in self.config.stop if stop in text]
        return text[: min(cuts, default=None)]

    def rows(
        self,
        prompts: list[Prompt],
        encoded: list[list[int]],
        on_token: Callable[[int, int], object] | None = None,
    ) -> Iterator[dict]:
        """One row of results for each prompt of this rank's share, as they finish."""
        n, own = self.config.n, parallel.share(len(prompts))
        repeated = [encoded[i] for i in own for _ in range(n)]
        seeds = [seed for i in own for seed in self.seeds(i)]
        drawn = self.draw(repeated, seeds, on_token)
        for index in own:
            completions = [next(drawn) for _ in range(n)]
            yield {
                "index": index,
                "prompt": prompts[index].record,
                "completions": [self.text(completion.ids) for completion in completions],
                "tokens": [len(completion.ids) for completion in completions],
                "logps": [completion.logps for completion in completions],
                "finish_reasons": [completion.finish_reason for completion in completions],
            }

    def seeds(self, index: int) -> list[int]:
        return completion_seeds(self.config.seed, index, self.config.n)


def write_samples(
    sampler: Sampler, prompts: list[Prompt], encoded: list[list[int]], out: Path
) -> None:
    """One JSON line for each prompt, as soon as its completions are there; Ctrl-C keeps them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done, total = 0, len(parallel.share(len(prompts)))
    hide = not parallel.is_main()
    bar = tqdm(unit=" tokens", desc=f"0/{total}", disable=hide)
    with part_file(out, parallel.rank()).open("w", encoding="utf-8") as file, bar:
        try:
            for row in sampler.rows(prompts, encoded, lambda *_: bar.update()):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                done += 1
                bar.set_description(f"{done}/{total} prompts")
        except KeyboardInterrupt:
            note(f"\nstopped by Ctrl-C: {done} of {total} prompts are in {file.name}")
            raise SystemExit(130) from None


def part_file(out: Path, rank: int) -> Path:
    """Where a rank writes: the file itself where there is one rank."""
    return out if parallel.world_size() == 1 else out.with_name(f"{out.name}.rank-{rank}")


def join_samples(prompts: int, out: Path) -> None:
    """The rows of all ranks in one file, in the order of the prompts."""
    ranks = parallel.world_size()
    parallel.any_rank(False)  # all have written
    if ranks > 1 and parallel.is_main():
        parts = [part_file(out, rank) for rank in range(ranks)]
        with contextlib.ExitStack() as stack, out.open("w", encoding="utf-8") as whole:
            rows = [stack.enter_context(part.open(encoding="utf-8")) for part in parts]
            whole.writelines(next(rows[index % ranks]) for index in range(prompts))
        for part in parts:
            part.unlink()
    note(f"{prompts} prompts: {out}")


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

    def add(self, index: int, token: int) -> None:
        self.ids.append(token)
        text = self.sampler.text(self.ids).rstrip(REPLACEMENT)
        self.write(text[: len(text) - self.held_back(text)])

    def held_back(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string may begin."""
        starts = [stop[:i] for stop in self.sampler.config.stop for i in range(1, len(stop))]
        return max((len(start) for start in starts if text.endswith(start)), default=0)

    def write(self, text: str) -> None:
        if len(text) > len(self.text):
            self.file.write(text[len(self.text) :])
            self.file.flush()
            self.text = text

    def finish(self) -> str:
        """Print what was held back, and end the line; out: the whole text."""
        text = self.sampler.text(self.ids)
        self.write(text)
        self.file.write("\n")
        self.file.flush()
        return text


def stream(sampler: Sampler, ids: list[int], index: int) -> str:
    """One completion, printed as it is drawn; Ctrl-C ends it. out: its text."""
    printer = Printer(sampler, sys.stdout)
    with contextlib.suppress(KeyboardInterrupt):
        list(sampler.draw([ids], sampler.seeds(index)[:1], printer.add))
    return printer.finish()


def chat(sampler: Sampler) -> None:
    """A conversation of many turns."""
    with contextlib.suppress(ImportError):  # line editing, where Python has it
        import readline  # noqa: F401
    note("Ctrl-D or /exit ends the chat, Ctrl-C an answer.")
    history: list[Message] = []
    turn = 0
    while (said := ask()) is not None:
        if not said.strip():
            continue
        history.append({"role": "user", "content": said})
        history, ids = fit(sampler, history)
        if len(ids) >= sampler.positions:
            note(f"this message is longer than the model's {sampler.positions} positions")
            history.pop()
            continue
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
        note("(the conversation is long: its oldest turn is forgotten)")
        history = history[2:]


if __name__ == "__main__":
    run_main(main)
