r"""Samples of the embedded task -> preference pairs, by one of two processes known exactly.

    python -m data.labels --process verdict --problems problems.jsonl --samples samples.jsonl \
        --opinions data/tiny/opinions.jsonl --out train.jsonl
    python -m data.labels --process population --problems problems.jsonl --samples samples.jsonl \
        --opinions data/tiny/opinions.jsonl --out train.jsonl

    verdict     right solutions with only true equations over all others of the same problem. No
                pair contradicts another: the pairs have no finite optimum
    population  any two different completions of a problem, and one label by the coin of Bradley
                and Terry: a over b with probability sigmoid(scale * (reward(a) - reward(b))). The
                optimum is known: pi* ∝ pi_ref^(beta/alpha) * exp(scale * reward / alpha)

A question of opinion adds one pair for each of its labels, whatever the process: coins of a known
share. Samples files come from sample.py or an evaluation; completions that were cut at their most
tokens make no pair, as training would end them there. Held-out pairs come from other problems.
"""

import argparse
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

from data.problems import check_solution
from data.rows import refuse_overwriting, write_rows
from data.synthetic import checked_rows, read_samples

LARGEST_POLL = 10**6  # labels of one question of opinion, at most

# The reward of the population.
RIGHT = 1.0  # for the right answer
TRUE = 0.5  # for equations that are all true and end in the stated answer
LINE = -0.1  # for each line, that of the answer included

Label = Callable[[Mapping, Sequence[str], random.Random], list[dict]]  # row, completions -> pairs


# ---------------------------------------------------------------------------------------------
# pairs of solutions
# ---------------------------------------------------------------------------------------------


def label_by_verdict(
    row: Mapping, completions: Sequence[str], rng: random.Random, limit: int
) -> list[dict]:
    """At most `limit` pairs of a problem: right with only true equations, over any other sample.

    Equal samples count once, so that no pair comes twice.
    """
    good, bad = [], []
    for text in dict.fromkeys(completions):
        (good if all(check_solution(row, text)) else bad).append(text)
    pairs = [(chosen, rejected) for chosen in good for rejected in bad if rejected.strip()]
    return [
        {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
        for chosen, rejected in rng.sample(pairs, min(limit, len(pairs)))
    ]


def reward(row: Mapping, text: str) -> float:
    """What the population values in a solution of a row that has the integer `answer`."""
    right, true = check_solution(row, text)
    return RIGHT * right + TRUE * true + LINE * len(text.splitlines())


def label_by_coin(
    row: Mapping, completions: Sequence[str], rng: random.Random, limit: int, scale: float
) -> list[dict]:
    """At most `limit` of the unordered pairs of a problem's samples, each labelled once.

    Pairs are drawn uniformly among all of different samples that are not empty: right or wrong
    does not count in it.
    """
    texts = [text for text in dict.fromkeys(completions) if text.strip()]
    pairs, labelled = list(combinations(texts, 2)), []
    for pair in rng.sample(pairs, min(limit, len(pairs))):
        first, second = (reward(row, text) for text in pair)
        heads = rng.random() < sigmoid(scale * (first - second))
        chosen, rejected = pair if heads else pair[::-1]
        labelled.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return labelled


def sigmoid(x: float) -> float:
    return (1 + math.tanh(x / 2)) / 2  # no x is too large for it


# ---------------------------------------------------------------------------------------------
# pairs of opinion
# ---------------------------------------------------------------------------------------------


def read_opinions(path: Path) -> list[dict]:
    kinds = {"prompt": str, "answers": list, "labels": int, "first_preferred": int}
    return [check_opinion(row, where) for where, row in checked_rows(path, kinds)]


def check_opinion(row: dict, where: str) -> dict:
    """The row; ValueError for answers or labels that are none."""
    texts = [answer for answer in row["answers"] if isinstance(answer, str)]
    if len(texts) != 2 or len(row["answers"]) != 2:
        raise ValueError(f"{where}: answers: expected two texts, got {row['answers']!r}")
    if not 0 <= row["first_preferred"] <= row["labels"] <= LARGEST_POLL:
        raise ValueError(
            f"{where}: expected 0 <= first_preferred <= labels <= {LARGEST_POLL}, got "
            f"{row['first_preferred']} and {row['labels']}"
        )
    return row


def opinion_pairs(row: Mapping) -> list[dict]:
    """One pair per label of the question: `first_preferred` of them prefer the first answer."""
    first, second = row["answers"]
    votes, labels = row["first_preferred"], row["labels"]
    for_first = {"prompt": row["prompt"], "chosen": first, "rejected": second}
    for_second = {"prompt": row["prompt"], "chosen": second, "rejected": first}
    return [for_first] * votes + [for_second] * (labels - votes)


# ---------------------------------------------------------------------------------------------
# files and the command line
# ---------------------------------------------------------------------------------------------


def write_pairs(
    problems: Path,
    samples: Path,
    opinions: Path | None,
    out: Path,
    label: Label,
    votes: int | None,
    seed: int,
) -> None:
    """Label a samples file, mix in the pairs of opinion, write one shuffled file of pairs.

    votes: so many labels a question of opinion, drawn without replacement from those it has; None
    takes them all.
    """
    refuse_overwriting(out, filter(None, (problems, samples, opinions)), f"--out {out}")
    rows, completions = read_samples(problems, samples, whole=True)
    rng, pairs = random.Random(f"{seed} label"), []
    for index, texts in completions.items():
        pairs += label(rows[index], texts, rng)
    from_samples = len(pairs)
    for labels in map(opinion_pairs, read_opinions(opinions) if opinions else []):
        pairs += labels if votes is None else rng.sample(labels, min(votes, len(labels)))
    if not pairs:
        raise ValueError(f"{samples}: no problem has samples that make a pair; raise --n")
    rng.shuffle(pairs)
    write_rows(out, pairs)
    print(f"{out}: {from_samples} pairs from samples, {len(pairs) - from_samples} of opinion")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.labels", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--process", choices=("verdict", "population"), required=True)
    parser.add_argument("--problems", type=Path, required=True, help="the file that was sampled on")
    parser.add_argument("--samples", type=Path, required=True, help="completions of its problems")
    parser.add_argument("--opinions", type=Path, help="opinions.jsonl, to mix its pairs in")
    parser.add_argument("--out", type=Path, required=True, help="file of pairs")
    parser.add_argument("--pairs", type=int, default=3, help="at most so many pairs a problem")
    parser.add_argument("--scale", type=float, help="of the population's reward; default 1")
    parser.add_argument("--votes", type=int, help="only so many labels a question of opinion")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def choose_label(a: argparse.Namespace) -> Label:
    """The labeller that the flags ask for; ValueError for flags out of range or without meaning."""
    if a.pairs < 1 or (a.votes is not None and a.votes < 1):
        raise ValueError("--pairs and --votes expect 1 or more")
    if a.votes is not None and a.opinions is None:
        raise ValueError("--votes counts labels of --opinions, which is not given; pass both")
    if a.process == "verdict":
        if a.scale is not None:
            raise ValueError("--scale has no meaning for --process verdict, which has no reward")
        return partial(label_by_verdict, limit=a.pairs)
    scale = 1.0 if a.scale is None else a.scale
    if not 0 <= scale < math.inf:
        raise ValueError(f"--scale expects a finite number, 0 or more, got {scale}")
    return partial(label_by_coin, limit=a.pairs, scale=scale)


def main(argv: list[str] | None = None) -> None:
    a = parse_arguments(argv)
    try:
        label = choose_label(a)
        write_pairs(a.problems, a.samples, a.opinions, a.out, label, a.votes, a.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
