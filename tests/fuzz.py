r"""Broken files for every loader: does each end in a message of ours, in time and without memory?

    python -m tests.fuzz --minutes 5 --seed 0
    python -m tests.fuzz --seed 0 --target adapter --case 1234    # one case again, with its message

A target is a folder of small valid files and the loaders that read it. A case breaks one or a few
of the files in a way that depends on (seed, target, case) alone and loads the folder in a child
process. It may load, or be refused: by a ValueError, OSError or ImportError that names
a file of the folder or a flag. Anything else is a finding: another exception, a message that names
nothing, a crash, more than LIMIT_GB of memory, more than LIMIT_S seconds. Each new kind of finding
is printed with the command that makes it again, and the exit code is then 1.
"""

import gzip
import itertools
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data.chat import bos_length, detect_chat_format, encode_prompt, stop_ids
from data.labels import label_by_coin, label_by_verdict, write_pairs
from data.pairs import read_pairs, tokenize_pairs
from data.prompts import completion_text, read_prompts
from data.tokenizer import load_tokenizer
from eval import arithmetic, benchmark
from model.adapter import load_policy, save_adapter
from model.checkpoint import init_model, load_model, save_model
from model.config import parse_config
from model.lora import add_lora
from model.training_state import checkpoints, describe, load_training_state, save_training_state
from tests.test_training_state import CONFIG as RUN_CONFIG
from tests.test_training_state import policy_and_optimizer

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"
LIMIT_S, LIMIT_GB = 20, 2
BATCH = 20  # cases in one child
FINE = ("loaded", "refused")
REFUSALS = (ValueError, OSError, ImportError)
Files = dict[str, bytes]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # children are forked, threads are not


@dataclass(frozen=True)
class FuzzConfig:
    minutes: float = 5.0  # how long
    cases: int | None = None  # or: so many cases of each target
    seed: int = 0  # of all cases
    target: str | None = None  # only this one
    case: int | None = None  # only this one, and its message


@dataclass(frozen=True)
class Target:
    make: Callable[[Path], object]  # writes the valid files into an empty folder
    load: Callable[[Path, random.Random], object]  # reads them as the scripts do


# ------------------------------------------------------------------------------------------------
# targets: valid files, and who reads them

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 24,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "attention_bias": True,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 1],
}
SAID = {"role": "user", "content": "Which is better, tea or coffee?"}
SPECIAL = {"content": "<|im_start|>", "special": True, "lstrip": False}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1))


def write_rows(path: Path, *rows: dict) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def make_model(folder: Path, file_bytes: int = 10**9) -> None:
    write_json(folder / "config.json", CONFIG)
    model = init_model(folder / "config.json", torch.float32, "cpu", seed=0)
    save_model(model, folder, [], file_bytes)
    write_json(folder / "config.json", CONFIG)


def make_shards(folder: Path) -> None:
    make_model(folder, file_bytes=2000)


def load_weights(folder: Path, rng: random.Random) -> None:
    load_model(folder, rng.choice([torch.float32, torch.bfloat16]))


def make_adapter(folder: Path) -> None:
    make_model(folder)
    model = load_model(folder)
    add_lora(model, rank=2, alpha=4.0, targets=("q_proj", "up_proj"))
    save_adapter(model, folder, "base")


def load_adapter(folder: Path, rng: random.Random) -> None:
    load_policy(folder, folder, rng.choice([torch.float32, torch.bfloat16]), "cpu")


def write_tokenizer_files(folder: Path) -> None:
    template = "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}{% endfor %}"
    fields = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "add_bos_token": True,
        "legacy": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "added_tokens_decoder": {"512": SPECIAL, "513": {**SPECIAL, "content": "<|im_end|>"}},
        "chat_template": [{"name": "default", "template": template}],
        "chat_format": "chatml",
    }
    write_json(folder / "tokenizer_config.json", fields)
    write_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})
    write_json(folder / "added_tokens.json", {"<|im_start|>": 512, "<|im_end|>": 513, "wörd": 514})
    write_json(folder / "generation_config.json", {"eos_token_id": [2, 1]})
    (folder / "chat_template.jinja").write_text(template)


def make_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes((TINY / "tokenizer.model").read_bytes())
    write_tokenizer_files(folder)


def make_tokenizer_json(folder: Path) -> None:
    """As transformers writes Llama's: byte pairs with bytes as fallback."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3}
    vocab |= {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    vocab |= {piece: 260 + i for i, piece in enumerate(["t", "e", "te", "▁te", "a"])}
    vocab |= {f"x{i}": 265 + i for i in range(247)}
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 512: "<|im_start|>", 513: "<|im_end|>"}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": t, **flags, "special": True} for i, t in names.items()
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [["t", "e"], ["▁", "te"]],
        },
    }
    write_json(folder / "tokenizer.json", spec)
    write_tokenizer_files(folder)


def load_texts(folder: Path, rng: random.Random) -> None:
    tokenizer = load_tokenizer(folder)
    wanted = rng.choice([None, "chatml", "plain", "llama2"])
    chat_format, _ = detect_chat_format(folder, tokenizer, wanted)
    ids = encode_prompt([SAID], chat_format, tokenizer)
    ids += tokenizer.encode_continuation("tea <|im_end|> wörd \0 \u2581 😀")
    ids += [0, 511, 512, 10**6]
    assert isinstance(tokenizer.decode(ids), str)
    completion_text(ids, chat_format, tokenizer)
    stop_ids(chat_format, tokenizer)
    bos_length(chat_format, tokenizer)


def make_pairs(folder: Path) -> None:
    dialogue = "\n\nHuman: Which?\n\nAssistant: {}"
    turns = [SAID, {"role": "assistant", "content": "Tea"}]
    other = [SAID, {"role": "assistant", "content": "Coffee"}]
    rows = [
        {"prompt": "Which?", "chosen": "Tea", "rejected": "Coffee", "score": 0.5},
        {"prompt": SAID["content"], "chosen": turns, "rejected": other},
        {"prompt": [SAID], "chosen": turns[1:], "rejected": other[1:]},
        {"chosen": dialogue.format("Tea"), "rejected": dialogue.format("Coffee")},
        {"messages": turns, "chosen": turns, "rejected": other},
        {"prompt": "Which?", "completion": "Tea", "chosen": "Tea", "rejected": "Coffee"},
    ]
    write_rows(folder / "a.jsonl", *rows)
    write_rows(folder / "b.jsonl.gz", *rows)
    write_json(folder / "c.json", rows)


def load_pairs(folder: Path, rng: random.Random) -> None:
    tokenizer = load_tokenizer(TINY)
    chat_format, _ = detect_chat_format(TINY, tokenizer, rng.choice(["plain", "zephyr", "llama2"]))
    objective = rng.choice(["dpo", "sft"])
    if objective == "sft":
        for file in sorted(folder.iterdir()):  # rows without a completion are no examples
            read_pairs(file, objective, log=str)
    paths = [folder / "c.json", folder] if rng.random() < 0.5 else sorted(folder.iterdir())
    pairs = read_pairs(paths, "dpo", log=str)
    tokenize_pairs(pairs, tokenizer, chat_format, 32, 16, 512, log=str, progress=False)


def make_prompts(folder: Path) -> None:
    rows = [{"prompt": "Which?"}, {"prompt": [SAID]}, {"messages": [SAID]}, {"question": "Which?"}]
    write_rows(folder / "a.jsonl", *rows)
    write_rows(folder / "b.jsonl.gz", *rows)
    (folder / "c.txt").write_text("Which?\n\nWhich is better, ä or 😀?\r\n")


def load_prompts(folder: Path, rng: random.Random) -> None:
    tokenizer = load_tokenizer(TINY)
    chat_format, _ = detect_chat_format(TINY, tokenizer)
    for file in sorted(folder.iterdir()):
        for prompt in read_prompts(file):
            encode_prompt(prompt.messages, chat_format, tokenizer)


def make_results(folder: Path) -> None:
    rows = [json.loads(line) for line in (TINY / "heldout.jsonl").open()][:3]
    write_rows(folder / "problems.jsonl", *rows)
    texts = ["1 + 1 = 2\n#### 2"]
    samples = [
        {"index": i, "completions": [*texts, row["completion"]]} for i, row in enumerate(rows)
    ]
    write_rows(folder / "samples.jsonl", *samples)
    opinions = [json.loads(line) for line in (TINY / "opinions.jsonl").open()][:2]
    write_rows(folder / "opinions.jsonl", *opinions)


def load_results(folder: Path, rng: random.Random) -> None:
    problems, samples, out = (
        str(folder / name) for name in ("problems.jsonl", "samples.jsonl", "out")
    )
    config = arithmetic.ArithmeticConfig(data=problems, samples=samples, out=out)
    benchmark.run_benchmark(config, arithmetic.make_task(config))
    files = (folder / f"{name}.jsonl" for name in ("problems", "samples", "opinions"))
    label = rng.choice(
        (partial(label_by_verdict, limit=2), partial(label_by_coin, limit=2, scale=1))
    )
    write_pairs(*files, folder / "pairs.jsonl", label, votes=rng.choice([None, 5]), seed=0)


def make_run(folder: Path) -> None:
    model, optimizer = policy_and_optimizer(steps=1, rank=1)
    save_training_state(folder, model, optimizer, 1, RUN_CONFIG)


def is_read(file: Path) -> bool:
    try:
        return file.read_bytes() is not None
    except OSError:
        return False


def load_run(folder: Path, rng: random.Random) -> None:
    """As it is, or with a manifest that vouches for what has become of the files."""
    for checkpoint in checkpoints(folder) if rng.random() < 0.7 else []:
        manifest = checkpoint / "manifest.json"
        there = [file for file in checkpoint.iterdir() if file.is_file() and file != manifest]
        there = [file for file in there if file.stat().st_size < 2**24 and is_read(file)]
        files = {file.name: describe(file) for file in there}
        shutil.rmtree(manifest) if manifest.is_dir() else manifest.unlink(missing_ok=True)
        manifest.write_text(json.dumps({"files": files}))
    load_training_state(folder, *policy_and_optimizer(rank=1), RUN_CONFIG)


TARGETS = {
    "model": Target(make_model, load_weights),
    "shards": Target(make_shards, load_weights),
    "adapter": Target(make_adapter, load_adapter),
    "sentencepiece": Target(make_sentencepiece, load_texts),
    "tokenizer_json": Target(make_tokenizer_json, load_texts),
    "pairs": Target(make_pairs, load_pairs),
    "prompts": Target(make_prompts, load_prompts),
    "results": Target(make_results, load_results),
    "run": Target(make_run, load_run),
}


# ------------------------------------------------------------------------------------------------
# mutations

RAW = (  # JSON values, as they are written; some are none
    "null true false 0 -1 1 2 3 7 2.5 -0.0 1e308 1e-320 1e999 2147483648 9223372036854775808 NaN "
    'Infinity -Infinity 1000000000000000000 -1000000000000000000 "" "x" "0" "\\ud800" "\\u0000" '
    '"😀" [] {} [[]] [null] {"":0} {"type":"Sequence"} "../../etc/passwd" "<s>" "<|im_start|>"'
).split()
RAW += ["9" * 400, "9" * 5000, '"' + "a" * 70000 + '"', '"' + " " * 70000 + '"']
RAW += ["[" * depth + "]" * depth for depth in (90, 600, 100000)]
RAW += ['{"a":' * depth + "0" + "}" * depth for depth in (90, 600, 100000)]
MARK = "@raw@"


def places(tree: object) -> Iterator[tuple[dict | list, str | int]]:
    """(container, key) of every value in a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list):
            yield from places(value)


def edit_json(text: str, rng: random.Random) -> str:
    """One value deleted, doubled, renamed, moved, wrapped, or another in its place."""
    try:
        tree = json.loads(text)
        where, key = rng.choice(list(places(tree)))
        mark = mark_json(tree, where, key, rng)
        return json.dumps(tree).replace(f'"{MARK}"', mark)
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return rng.choice(RAW)  # broken already, or without a value


def mark_json(tree: object, where: dict | list, key: str | int, rng: random.Random) -> str:
    """Change where[key]; what is to be written in place of MARK is returned."""
    value, raw = where[key], rng.choice(RAW)
    kind = rng.choice(("delete", "double", "rename", "move", "wrap", "number", "raw", "raw", "raw"))
    if kind == "delete":
        del where[key]
    elif kind == "double" and isinstance(where, dict):
        where[MARK] = rng.choice((value, 0))
        return json.dumps(key)
    elif kind == "rename" and isinstance(where, dict):
        where[MARK] = where.pop(key)
        return rng.choice(('""', '"x"', '"\\ud800"'))
    elif kind == "move":
        other, there = rng.choice(list(places(tree)))
        where[key], other[there] = json.loads(json.dumps((other[there], value)))
    elif kind == "wrap":
        where[key] = rng.choice(([value], {"content": value}, str(value)))
    elif kind == "number" and type(value) in (int, float):
        where[key] = rng.choice(
            (-value, value + 1, value - 1, value * 10**9, value / 2, value == 1)
        )
    else:
        where[key] = MARK
    return raw


def break_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, double, drop or overwrite somewhere."""
    at = rng.randrange(len(data) + 1)
    size = min(rng.choice((1, 1, 2, 4, 8, 64, 1000)), len(data) - at)
    kind = rng.choice(("flip", "flip", "cut", "insert", "double", "drop", "overwrite", "encode"))
    if kind == "flip" and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "insert":
        some = (b"\0", b"\xff" * 8, b"\n", b'"', b"{", b"\xef\xbb\xbf", rng.randbytes(16))
        return data[:at] + rng.choice(some) + data[at:]
    if kind == "double":
        return data[: at + size] + data[at:]
    if kind == "drop":
        return data[:at] + data[at + size :]
    if kind == "overwrite":
        return data[:at] + rng.randbytes(size) + data[at + size :]
    start = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"\0" * 8))
    return start + data


def edit_tensors(data: bytes, rng: random.Random) -> bytes:
    """The header's JSON, its length, or the bytes behind it."""
    if len(data) < 8:
        return break_bytes(data, rng)
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = rng.choice(("header", "header", "header", "length", "rest"))
    if kind == "header":
        header = edit_json(header.decode(errors="replace"), rng).encode(errors="replace")
        length = rng.choice((len(header),) * 7 + (length,))
    elif kind == "length":
        near = (length + rng.randint(-9, 9), len(data), len(data) - 8, len(data) + 1)
        length = rng.choice((0, 1, 2, 2**31, 2**32, 2**63, 2**64 - 1, 10**8, 99_999_999, *near))
    else:
        rest = rng.choice((rest[:-1], rest + b"\0", b"", rest * 2, break_bytes(rest, rng)))
    return struct.pack("<Q", length % 2**64) + header + rest


def edit_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.decode(errors="replace").split("\n")
    at = rng.randrange(len(lines))
    kind = rng.choice(("edit", "edit", "edit", "edit", "double", "drop", "join"))
    if kind == "edit":
        lines[at] = edit_json(lines[at], rng)
    elif kind == "double":
        lines.insert(at, lines[at])
    elif kind == "drop":
        del lines[at]
    return ("" if kind == "join" else "\n").join(lines).encode(errors="replace")


def edit(name: str, data: bytes, rng: random.Random) -> bytes:
    """The edit that knows what kind of file this is, or, now and then, one that does not."""
    if rng.random() < 0.3:
        return break_bytes(data, rng)
    if name.endswith(".safetensors"):
        return edit_tensors(data, rng)
    if name.endswith(".jsonl"):
        return edit_lines(data, rng)
    if name.endswith(".gz"):
        try:
            return gzip.compress(edit_lines(gzip.decompress(data), rng))
        except (OSError, EOFError, ValueError, zlib.error):
            return break_bytes(data, rng)
    if name.endswith(".json"):
        return edit_json(data.decode(errors="replace"), rng).encode(errors="replace")
    return break_bytes(data, rng)


def replace_file(path: Path, rng: random.Random) -> None:
    """Something else where a file should be."""
    path.unlink()
    kind = rng.choice(("nothing", "empty", "folder", "fifo", "link", "loop", "device", "sparse"))
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(rng.choice(("/etc/passwd", "/proc/self/mem", "../nowhere")))
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to(rng.choice(("/dev/zero", "/dev/stdin", "/dev/null")))
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 10**12)


def break_files(folder: Path, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        file = rng.choice([f for f in sorted(folder.rglob("*")) if f.is_file()] or [None])
        if file is None or file.is_symlink() or file.stat().st_size > 10**8:
            return
        if rng.random() < 0.03:
            replace_file(file, rng)
        else:
            file.write_bytes(edit(file.name, file.read_bytes(), rng))


# ------------------------------------------------------------------------------------------------
# cases, in a child process

Result = tuple[str, str]  # loaded, refused, or the kind of finding; and its message


def run_cases(name: str, files: Files, seed: int, cases: Sequence[int]) -> list[Result]:
    """The results of the cases up to the first that hangs or crashes; all run in one child."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as parent:
        source, sink = os.pipe()
        child = os.fork()
        if child == 0:
            limit_memory()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            try:
                for case in cases:
                    result = run_case(name, files, seed, case, Path(parent) / "case")
                    os.write(sink, json.dumps(result).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(sink)
        results, text, late = [], b"", False
        while not (late := not select.select([source], [], [], LIMIT_S)[0]):
            if not (block := os.read(source, 2**16)):
                break
            *lines, text = (text + block).split(b"\n")
            results += [tuple(json.loads(line)) for line in lines]
        os.close(source)
        if late:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if len(results) < len(cases):
            results.append((f"hung for {LIMIT_S} s" if late else f"died with status {status}", ""))
        return results


def run_case(name: str, files: Files, seed: int, case: int, folder: Path) -> Result:
    rng = random.Random(f"{seed} {name} {case}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    if case >= 0:
        break_files(folder, rng)
    return judge(
        lambda: TARGETS[name].load(folder, rng), {str(folder), *(Path(file).name for file in files)}
    )


def limit_memory() -> None:
    """Of what is written to; a file may be mapped, whatever its size."""
    held = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (held + LIMIT_GB * 2**30,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def judge(load: Callable[[], object], names: set[str]) -> Result:
    try:
        load()
    except BaseException as error:
        message = str(error)
        named = any(name in message for name in names) or "--" in message
        if isinstance(error, REFUSALS) and named:
            return "refused", message[:2000]
        kind = "nameless " if isinstance(error, REFUSALS) else ""
        frames = traceback.extract_tb(error.__traceback__)
        frames = [
            f for f in frames if "/fuzz.py" not in f.filename and "site-packages" not in f.filename
        ]
        place = f"{Path(frames[-1].filename).name}, {frames[-1].name}" if frames else "?"
        details = "".join(traceback.format_exception(error, limit=-6, chain=False))
        return f"{kind}{type(error).__name__} in {place}", details[-4000:]
    return "loaded", ""


def valid_files(name: str) -> Files:
    """The files of a target, and that they load."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        TARGETS[name].make(Path(folder))
        found = (file for file in sorted(Path(folder).rglob("*")) if file.is_file())
        files = {str(file.relative_to(folder)): file.read_bytes() for file in found}
    [result] = run_cases(name, files, 0, [-1])
    assert result[0] == "loaded", (name, *result)
    return files


# ------------------------------------------------------------------------------------------------
# many cases


def fuzz(
    seed: int, names: Sequence[str], cases: int | None = None, seconds: float = float("inf")
) -> dict[str, Counter[str]]:
    """{target: outcomes} of so many cases of each target, or of as many as there is time for."""
    files = {name: valid_files(name) for name in names}
    counts = {name: Counter() for name in names}
    end, turns = time.monotonic() + seconds, itertools.cycle(names)
    while time.monotonic() < end and any(c.total() != cases for c in counts.values()):
        name = next(turns)
        done = counts[name].total()
        some = range(done, done + BATCH if cases is None else min(done + BATCH, cases))
        results = run_cases(name, files[name], seed, some) if some else []
        for case, (outcome, details) in zip(some, results, strict=False):
            counts[name][outcome] += 1
            if outcome not in FINE and counts[name][outcome] == 1:
                again = f"python -m tests.fuzz --seed {seed} --target {name} --case {case}"
                print(f"\n{outcome}\n    {again}\n{details}", flush=True)
    return counts


def findings(counts: dict[str, Counter[str]]) -> int:
    return sum(n for c in counts.values() for kind, n in c.items() if kind not in FINE)


def main() -> None:
    torch.set_num_threads(1)
    config = parse_config(FuzzConfig)
    names = list(TARGETS) if config.target is None else [config.target]
    if config.case is not None:
        files = valid_files(names[0])
        [(outcome, details)] = run_cases(names[0], files, config.seed, [config.case])
        print(f"{outcome}\n{details}")
        raise SystemExit(outcome not in FINE)
    seconds = 60 * config.minutes if config.cases is None else float("inf")
    counts = fuzz(config.seed, names, config.cases, seconds)
    for name, outcomes in counts.items():
        print(f"{name:16}{outcomes.total():7} cases:", dict(outcomes.most_common()))
    raise SystemExit(findings(counts) > 0)


if __name__ == "__main__":
    main()
