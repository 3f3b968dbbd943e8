r"""The embedded default, data/tiny: word problems and questions of opinion, from nothing, on a CPU.

Every command is seeded and can be run again; together they make data/tiny:

    python -m data.synthetic corpus --out runs/corpus --seed 0
    python train.py --objective sft --init runs/corpus/config.json --data runs/corpus/sft.jsonl \\
        --eval_data runs/corpus/heldout.jsonl --eval_every 500 --lora_rank 0 --batch_size 16 \\
        --learning_rate 3e-3 --warmup_steps 100 --epochs 2 --out_dir runs/sft
    python sample.py --model runs/sft/model --prompts runs/corpus/problems.jsonl \\
        --n 8 --seed 1 --max_new_tokens 100 --out runs/corpus/samples.jsonl
    python sample.py --model runs/sft/model --prompts runs/corpus/heldout.jsonl \\
        --n 8 --seed 2 --max_new_tokens 100 --out runs/corpus/heldout-samples.jsonl
    cp runs/sft/model/* runs/corpus/heldout.jsonl runs/corpus/opinions.jsonl data/tiny
    head -4000 runs/corpus/sft.jsonl > data/tiny/sft.jsonl
    python -m data.synthetic label --problems runs/corpus/problems.jsonl --pairs 2 --seed 0 \\
        --samples runs/corpus/samples.jsonl --opinions runs/corpus/opinions.jsonl \\
        --out data/tiny/train.jsonl
    python -m data.synthetic label --problems runs/corpus/heldout.jsonl --pairs 1 --votes 20 \\
        --samples runs/corpus/heldout-samples.jsonl --opinions runs/corpus/opinions.jsonl \\
        --seed 0 --out data/tiny/eval.jsonl

`corpus` writes sft.jsonl, problems.jsonl (to sample on), heldout.jsonl (no sum of it is in the
other two), opinions.jsonl, tokenizer.model and config.json. `label` makes preference pairs: right
solutions with only true equations over all others of the same problem, and for each question of
opinion as many pairs as it has labels.
"""

import argparse
import io
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data.problems import Problem, check_solution, draw_problem, draw_solution
from data.rows import read_rows as read_numbered_rows

VOCAB_SIZE = 512
LARGEST_POLL = 10**6  # labels of one question of opinion, at most
OPINION_SHARE = 0.05  # of the SFT rows

# Two answers each, and the share of the population that prefers the first.
OPINIONS = (
    ("Which is better, tea or coffee?", "Tea", "Coffee", 0.6),
    ("Which is better, cats or dogs?", "Cats", "Dogs", 0.4),
    ("Which is better, summer or winter?", "Summer", "Winter", 0.7),
    ("Which is better, the sea or the hills?", "The sea", "The hills", 0.3),
    ("Which is better, bread or rice?", "Bread", "Rice", 0.75),
    ("Which is better, a film or a song?", "A film", "A song", 0.25),
    ("Which is better, red or green?", "Red", "Green", 0.8),
    ("Which is better, chess or cards?", "Chess", "Cards", 0.2),
    ("Which is better, the sun or the rain?", "The sun", "The rain", 0.9),
    ("Which is better, a train or a bus?", "A train", "A bus", 0.1),
    ("Which is better, cake or soup?", "Cake", "Soup", 0.95),
    ("Which is better, early or late?", "Early", "Late", 0.05),
)


# ---------------------------------------------------------------------------------------------
# the corpus
# ---------------------------------------------------------------------------------------------


def problem_row(problem: Problem, rng: random.Random) -> dict:
    return {
        "prompt": problem.question,
        "completion": draw_solution(problem, rng),
        "answer": problem.answer,
        "steps": problem.steps,
        "key": problem.key,
    }


def problem_rows(count: int, split: str, seed: int) -> list[dict]:
    """`count` problems of a split: "sft", "problems" or "heldout" (in these, no story twice)."""
    rng, rows, seen = random.Random(f"{seed} {split}"), [], set()
    while len(rows) < count:
        row = problem_row(draw_problem(rng, held_out=split == "heldout"), rng)
        if split == "sft" or row["prompt"] not in seen:
            seen.add(row["prompt"])
            rows.append(row)
    return rows


def opinion_rows(labels: int, seed: int) -> list[dict]:
    """The questions with `labels` coin flips each; p_hat is the share that the labels show."""
    rng, rows = random.Random(f"{seed} opinions"), []
    for prompt, first, second, p in OPINIONS:
        votes = sum(rng.random() < p for _ in range(labels))
        row = {"prompt": prompt, "answers": [first, second], "p": p}
        rows.append({**row, "labels": labels, "first_preferred": votes, "p_hat": votes / labels})
    return rows


def sft_rows(count: int, seed: int) -> list[dict]:
    """Prompt and completion; each opinion question gets both answers equally often."""
    copies = round(count * OPINION_SHARE / (2 * len(OPINIONS)))
    rows = [
        {"prompt": prompt, "completion": answer}
        for prompt, first, second, _ in OPINIONS
        for answer in (first, second)
        for _ in range(copies)
    ]
    for row in problem_rows(count - len(rows), "sft", seed):
        rows.append({"prompt": row["prompt"], "completion": row["completion"]})
    random.Random(f"{seed} order").shuffle(rows)
    return rows


def train_tokenizer(rows: Iterable[Mapping]) -> bytes:
    """A byte-pair sentencepiece model as Llama's: digits split, bytes as fallback, BOS 1, EOS 2.

    The marks of the plain chat format are sentences of their own, so that they become pieces that
    do not stick to the words around them.
    """
    import sentencepiece

    sentences = []
    for row in rows:
        sentences += ["\n\nHuman:", "\n\nAssistant:", row["prompt"], row["completion"]]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        split_digits=True,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def model_config() -> dict:
    """0.86M parameters in the form of a Hugging Face config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "initializer_range": 0.06,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def write_corpus(out: Path, seed: int, sft: int, problems: int, heldout: int, labels: int) -> None:
    if min(sft, problems, heldout, labels) < 1:
        raise ValueError("--sft, --problems, --heldout and --labels expect 1 or more")
    out.mkdir(parents=True, exist_ok=True)
    examples = sft_rows(sft, seed)
    write_rows(out / "sft.jsonl", examples)
    write_rows(out / "problems.jsonl", problem_rows(problems, "problems", seed))
    write_rows(out / "heldout.jsonl", problem_rows(heldout, "heldout", seed))
    write_rows(out / "opinions.jsonl", opinion_rows(labels, seed))
    (out / "tokenizer.model").write_bytes(train_tokenizer(examples))
    (out / "config.json").write_text(json.dumps(model_config(), indent=2) + "\n")


# ---------------------------------------------------------------------------------------------
# preference pairs
# ---------------------------------------------------------------------------------------------


def label_samples(
    row: Mapping, completions: Sequence[str], limit: int, rng: random.Random
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


def check_opinion(row: Mapping, where: str) -> None:
    texts = [answer for answer in row["answers"] if isinstance(answer, str)]
    if len(texts) != 2 or len(row["answers"]) != 2:
        raise ValueError(f"{where}: answers: expected two texts, got {row['answers']!r}")
    if not 0 <= row["first_preferred"] <= row["labels"] <= LARGEST_POLL:
        raise ValueError(
            f"{where}: expected 0 <= first_preferred <= labels <= {LARGEST_POLL}, got "
            f"{row['first_preferred']} and {row['labels']}"
        )


def opinion_pairs(row: Mapping) -> list[dict]:
    """One pair per label of the question: `first_preferred` of them prefer the first answer."""
    first, second = row["answers"]
    votes, labels = row["first_preferred"], row["labels"]
    for_first = {"prompt": row["prompt"], "chosen": first, "rejected": second}
    for_second = {"prompt": row["prompt"], "chosen": second, "rejected": first}
    return [for_first] * votes + [for_second] * (labels - votes)


def write_pairs(
    problems: Path,
    samples: Path,
    opinions: Path | None,
    out: Path,
    limit: int,
    votes: int | None,
    seed: int,
) -> None:
    """Label a samples file, mix in the pairs of opinion, write one shuffled file of pairs.

    limit: at most so many pairs a problem. votes: so many labels a question of opinion, drawn
    without replacement from those it has; None takes them all.
    """
    problem_list, rng, pairs = read_rows(problems), random.Random(f"{seed} label"), []
    sampled = read_rows(samples)
    check_keys(samples, sampled, {"index": int, "completions": list})
    check_keys(problems, problem_list, {"prompt": str, "answer": int})
    for line, sample in enumerate(sampled, start=1):
        index = sample.get("index")
        if not 0 <= index < len(problem_list):
            raise ValueError(
                f"{samples}:{line}: expected an index below {len(problem_list)}, the rows of "
                f"{problems}, got {index!r}; pass the --problems that the samples were made from"
            )
        pairs += label_samples(problem_list[index], sample["completions"], limit, rng)
    from_samples = len(pairs)
    if opinions is not None:
        questions = read_rows(opinions)
        kinds = {"prompt": str, "answers": list, "labels": int, "first_preferred": int}
        check_keys(opinions, questions, kinds)
        for line, row in enumerate(questions, start=1):
            check_opinion(row, f"{opinions}:{line}")
        for labels in map(opinion_pairs, questions):
            pairs += labels if votes is None else rng.sample(labels, min(votes, len(labels)))
    if not pairs:
        raise ValueError(f"{samples}: no problem has both a right and a wrong sample; raise --n")
    rng.shuffle(pairs)
    write_rows(out, pairs)
    print(f"{out}: {from_samples} pairs from samples, {len(pairs) - from_samples} of opinion")


# ---------------------------------------------------------------------------------------------
# files and the command line
# ---------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict]:
    """The objects of a JSONL file; ValueError with file:line for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a JSONL file, got {str(path)!r}: no such file")
    return [check_unicode(row, where) for where, row in read_numbered_rows(path)]


def check_unicode(row: dict, where: str) -> dict:
    """The row; ValueError for half a surrogate pair, which JSON can spell and no file can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: not Unicode, half a surrogate pair") from None
    return row


def check_keys(path: Path, rows: Sequence[Mapping], kinds: Mapping[str, type]) -> None:
    """ValueError with file:line for a row without one of the keys, or with another type there."""
    for line, row in enumerate(rows, start=1):
        for key, kind in kinds.items():
            if type(row.get(key)) is not kind:
                got = type(row.get(key)).__name__
                raise ValueError(f"{path}:{line}: {key}: expected {kind.__name__}, got {got}")


def write_rows(path: Path, rows: Iterable[Mapping]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """argparse and not model/config.py: nothing in data/ imports model/."""
    parser = argparse.ArgumentParser(prog="python -m data.synthetic", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    stages = parser.add_subparsers(dest="stage", required=True)
    corpus = stages.add_parser("corpus", help="write problems, opinions, tokenizer and config")
    corpus.add_argument("--out", type=Path, required=True, help="folder")
    corpus.add_argument("--seed", type=int, default=0)
    corpus.add_argument("--sft", type=int, default=72000, help="SFT rows, opinions included")
    corpus.add_argument("--problems", type=int, default=1500, help="problems to sample on")
    corpus.add_argument("--heldout", type=int, default=500, help="held-out problems")
    corpus.add_argument("--labels", type=int, default=400, help="labels a question of opinion")
    label = stages.add_parser("label", help="label samples into preference pairs")
    label.add_argument("--problems", type=Path, required=True, help="the file that was sampled on")
    label.add_argument("--samples", type=Path, required=True, help="sample.py's output for it")
    label.add_argument("--opinions", type=Path, help="opinions.jsonl, to mix its pairs in")
    label.add_argument("--out", type=Path, required=True, help="file of pairs")
    label.add_argument("--pairs", type=int, default=3, help="at most so many pairs a problem")
    label.add_argument("--votes", type=int, help="only so many labels a question of opinion")
    label.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    a = parse_arguments(argv)
    try:
        if a.stage == "corpus":
            write_corpus(a.out, a.seed, a.sft, a.problems, a.heldout, a.labels)
        else:
            write_pairs(a.problems, a.samples, a.opinions, a.out, a.pairs, a.votes, a.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
