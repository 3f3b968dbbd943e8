r"""Preference pairs -> training pairs, held-out pairs and held-out prompts, by first human turn.

    python -m data.split --data pairs.jsonl --out runs/pairs
    python -m data.split --data hh/helpful.jsonl.gz hh/harmless.jsonl.gz --heldout 0.1 \
        --pairs 40000 --prompts 500 --seed 0 --out runs/hh

Reads what train.py reads. OUT gets train.jsonl and eval.jsonl, pairs for its --data and
--eval_data, and prompts.jsonl for sample.py --prompts. Two conversations with the same first human
turn, such as one and its continuation in HH, never stand on both sides; and no two of the prompts
have the same one, so that they are as good as independent. The side of a first turn depends on it
and on --seed alone: data that is added behind moves none to the other side.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from data.chat import takes_turns
from data.pairs import Pair, first_turn, read_pairs, split_by_first_turn
from data.rows import data_files, refuse_overwriting, write_rows

FILES = ("train", "eval", "prompts")
PROMPTS = 100  # that are drawn where so many are held out


def draw_prompts(pairs: Sequence[Pair], count: int | None, rng: random.Random) -> list[Pair]:
    """`count` pairs with different first turns; ValueError where there are fewer.

    None takes PROMPTS of them, or all where there are no more. In their prompts user and assistant
    take turns, which some chat formats ask for, and the user's last message says something.
    """
    some = [pair for pair in rng.sample(pairs, len(pairs)) if takes_turns(pair.prompt)]
    some = [pair for pair in some if pair.prompt[-1]["content"].strip()]
    some = list({first_turn(pair): pair for pair in some}.values())
    if count is not None and count > len(some):
        raise ValueError(
            f"--prompts expects at most {len(some)}, the different first turns that are held out, "
            f"got {count}; pass fewer, a larger --heldout, or more --data"
        )
    return some[: PROMPTS if count is None else count]


def at_most(pairs: Sequence[Pair], count: int | None, rng: random.Random) -> list[Pair]:
    """`count` of the pairs, drawn without replacement; all where there are no more."""
    return rng.sample(pairs, min(len(pairs), count or len(pairs)))


# ---------------------------------------------------------------------------------------------
# files and the command line
# ---------------------------------------------------------------------------------------------


def write_split(a: argparse.Namespace) -> None:
    inputs = data_files(a.data)
    for name in FILES:
        refuse_overwriting(a.out / f"{name}.jsonl", inputs, f"--out {a.out}")
    pairs = read_pairs(a.data, "dpo")
    training, held_out = split_by_first_turn(pairs, a.heldout, a.seed)
    if not training or not held_out:
        empty = "held-out" if training else "training"
        raise ValueError(f"--heldout {a.heldout:g} leaves no {empty} pairs of {len(pairs)}")
    rng = random.Random(f"{a.seed} split")
    prompts = [{"prompt": pair.prompt} for pair in draw_prompts(held_out, a.prompts, rng)]
    some = [as_row(pair) for pair in at_most(training, a.pairs, rng)]
    others = [as_row(pair) for pair in at_most(held_out, a.eval_pairs, rng)]
    files = dict(zip(FILES, (some, others, prompts), strict=True))
    for name, rows in files.items():
        write_rows(a.out / f"{name}.jsonl", rows)
    turns = len(set(map(first_turn, held_out)))
    print(f"first human turns: {len(set(map(first_turn, pairs)))}, {turns} of them held out")
    print(f"{a.out}: {', '.join(f'{name}.jsonl {len(rows)}' for name, rows in files.items())}")


def as_row(pair: Pair) -> dict:
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.split", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", nargs="+", required=True, help="files or folders of pairs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the three files")
    parser.add_argument("--heldout", type=float, default=0.1, help="share of the first turns")
    parser.add_argument("--prompts", type=int, help=f"held-out prompts; default at most {PROMPTS}")
    parser.add_argument("--pairs", type=int, help="at most so many training pairs; default all")
    parser.add_argument("--eval_pairs", type=int, help="at most so many held-out pairs")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def check_arguments(a: argparse.Namespace) -> None:
    """ValueError for flags out of range."""
    if not 0 < a.heldout < 1:
        raise ValueError(f"--heldout expects a share between 0 and 1, got {a.heldout}")
    for flag in ("prompts", "pairs", "eval_pairs"):
        if (value := getattr(a, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} expects 1 or more, got {value}")


def main(argv: list[str] | None = None) -> None:
    a = parse_arguments(argv)
    try:
        check_arguments(a)
        write_split(a)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
