r"""The embedded default, data/tiny: word problems and questions of opinion, from nothing, on a CPU.

Every command is seeded and can be run again; together they make data/tiny (its validation.jsonl and
test.jsonl are older than a rule of `write_graded`):

    python -m data.synthetic corpus --out runs/corpus --seed 0
    python train.py --objective sft --init runs/corpus/config.json --data runs/corpus/sft.jsonl \
        --eval_data runs/corpus/heldout.jsonl --eval_every 500 --lora_rank 0 --batch_size 16 \
        --learning_rate 3e-3 --warmup_steps 100 --epochs 2 --out_dir runs/sft
    python sample.py --model runs/sft/model --prompts runs/corpus/problems.jsonl \
        --n 8 --seed 1 --max_new_tokens 100 --out runs/corpus/samples.jsonl
    python sample.py --model runs/sft/model --prompts runs/corpus/heldout.jsonl \
        --n 8 --seed 2 --max_new_tokens 100 --out runs/corpus/heldout-samples.jsonl
    cp runs/sft/model/* runs/corpus/heldout.jsonl runs/corpus/opinions.jsonl data/tiny
    head -4000 runs/corpus/sft.jsonl > data/tiny/sft.jsonl
    python -m data.labels --process verdict --problems runs/corpus/problems.jsonl --pairs 2 \
        --samples runs/corpus/samples.jsonl --opinions runs/corpus/opinions.jsonl --seed 0 \
        --out data/tiny/train.jsonl
    python -m data.labels --process verdict --problems runs/corpus/heldout.jsonl --pairs 1 \
        --samples runs/corpus/heldout-samples.jsonl --opinions runs/corpus/opinions.jsonl \
        --votes 20 --seed 0 --out data/tiny/eval.jsonl

    python -m data.synthetic corpus --out runs/fresh --seed 1 --sft 200 --problems 10 --heldout 2000
    python -m eval.arithmetic --data runs/fresh/heldout.jsonl --n 64 --seed 7 --out runs/base
    python -m data.synthetic grade --problems runs/fresh/heldout.jsonl \
        --samples runs/base/samples.jsonl --each 50 --out data/tiny

`corpus` writes sft.jsonl, problems.jsonl (to sample on), heldout.jsonl (no sum of it is in the
other two), opinions.jsonl, tokenizer.model and config.json. `grade` writes validation.jsonl and
test.jsonl, held-out problems by how many of a base policy's samples are right: easy at least half,
hard fewer than 1 in 16, medium what lies between; as many of each, in turn. Preference pairs are
made by data/labels.py.
"""

import argparse
import io
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from data.problems import Problem, check_solution, draw_problem, draw_solution
from data.rows import check_text, read_rows, refuse_overwriting, write_rows

VOCAB_SIZE = 512
OPINION_SHARE = 0.05  # of the SFT rows
GRADES = ("easy", "medium", "hard")

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


def model_config(width: int = 128, layers: int = 4) -> dict:
    """In the form of a Hugging Face config.json; as it stands, 0.86M parameters."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": width,
        "intermediate_size": 43 * width // 16,
        "num_hidden_layers": layers,
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


def write_corpus(
    out: Path, seed: int, sft: int, problems: int, heldout: int, labels: int, config: Mapping
) -> None:
    if min(sft, problems, heldout, labels) < 1:
        raise ValueError("--sft, --problems, --heldout and --labels expect 1 or more")
    examples = sft_rows(sft, seed)
    write_rows(out / "sft.jsonl", examples)
    write_rows(out / "problems.jsonl", problem_rows(problems, "problems", seed))
    write_rows(out / "heldout.jsonl", problem_rows(heldout, "heldout", seed))
    write_rows(out / "opinions.jsonl", opinion_rows(labels, seed))
    (out / "tokenizer.model").write_bytes(train_tokenizer(examples))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------
# grades of difficulty
# ---------------------------------------------------------------------------------------------


def grade_of(correct: int, samples: int) -> str:
    """easy: at least half of a policy's samples are right; hard: fewer than one in sixteen."""
    if 2 * correct >= samples:
        return "easy"
    return "hard" if 16 * correct < samples else "medium"


def graded_row(row: Mapping, completions: Sequence[str]) -> dict:
    correct, samples = sum(check_solution(row, text)[0] for text in completions), len(completions)
    difficulty = grade_of(correct, samples)
    return {**row, "difficulty": difficulty, "base_correct": correct, "base_samples": samples}


def interleave(rows: Sequence[Mapping], each: int) -> list[Mapping]:
    """The first `each` rows of each grade, in the order easy, medium, hard, easy, ..."""
    by_grade = [[row for row in rows if row["difficulty"] == grade] for grade in GRADES]
    for grade, some in zip(GRADES, by_grade, strict=True):
        if len(some) < each:
            raise ValueError(
                f"expected {each} {grade} problems, got {len(some)}; sample on more or lower --each"
            )
    return [row for some in zip(*(some[:each] for some in by_grade), strict=True) for row in some]


def write_graded(problems: Path, samples: Path, out: Path, each: int) -> None:
    """validation.jsonl and test.jsonl in `out`, with `each` problems of each grade in both.

    Of problems with the same sum the first counts. (data/tiny is older: 26 of its 150 test problems
    have the sum of a validation problem, 17 that of an earlier test problem.)
    """
    if each < 1:
        raise ValueError(f"--each expects 1 or more, got {each}")
    for name in ("validation", "test"):
        refuse_overwriting(out / f"{name}.jsonl", (problems, samples), f"--out {out}")
    rows, completions = read_samples(problems, samples)
    distinct = {rows[i].get("key", rows[i]["prompt"]): i for i in sorted(completions, reverse=True)}
    graded = [graded_row(rows[i], completions[i]) for i in sorted(distinct.values())]
    chosen = interleave(graded, 2 * each)
    half = each * len(GRADES)
    write_rows(out / "validation.jsonl", chosen[:half])
    write_rows(out / "test.jsonl", chosen[half:])
    counts = Counter(row["difficulty"] for row in graded)
    shown = ", ".join(f"{counts[grade]} {grade}" for grade in GRADES)
    print(f"{out}: {half} and {half} of {len(graded)} problems: {shown}")


# ---------------------------------------------------------------------------------------------
# files and the command line
# ---------------------------------------------------------------------------------------------


def checked_rows(path: Path, kinds: Mapping[str, type]) -> Iterator[tuple[str, dict]]:
    """(file:line, object) of a JSONL file whose rows have these keys, with values of the types.

    Raises ValueError with file:line for another row, FileNotFoundError without a file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a JSONL file, got {str(path)!r}: no such file")
    for where, row in read_rows(path):
        check_unicode(row, where)
        for key, kind in kinds.items():
            if type(row.get(key)) is not kind:
                got = type(row.get(key)).__name__
                raise ValueError(f"{where}: {key}: expected {kind.__name__}, got {got}")
        yield where, row


def check_unicode(row: dict, where: str) -> None:
    """ValueError for half a surrogate pair, which JSON can spell and no file can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: not Unicode, half a surrogate pair") from None


def read_samples(
    problems: Path, samples: Path, whole: bool = False
) -> tuple[list[dict], dict[int, list[str]]]:
    """(rows of the problems file, {row: its completions} in the order of the samples file).

    whole: without those that were cut at their most tokens, where the file says which. Raises
    ValueError with file:line for what is no sample, or one of another problems file.
    """
    rows = [row for _, row in checked_rows(problems, {"prompt": str, "answer": int})]
    completions: dict[int, list[str]] = {}
    for where, sample in checked_rows(samples, {"index": int, "completions": list}):
        index, texts = sample["index"], sample["completions"]
        if not 0 <= index < len(rows):
            raise ValueError(
                f"{where}: expected an index below {len(rows)}, the rows of "
                f"{problems}, got {index!r}; pass the --problems that the samples were made from"
            )
        if index in completions or not texts:
            raise ValueError(f"{where}: expected an index not yet seen, with completions")
        texts = [check_text(text, "completions", where) for text in texts]
        reasons = sample.get("finish_reasons", [None] * len(texts))
        if not isinstance(reasons, list) or len(reasons) != len(texts):
            raise ValueError(f"{where}: finish_reasons: expected one for each completion")
        completions[index] = [
            text
            for text, reason in zip(texts, reasons, strict=True)
            if not (whole and reason == "length")
        ]
    return rows, completions


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
    corpus.add_argument("--width", type=int, default=128, help="of the model in config.json")
    corpus.add_argument("--layers", type=int, default=4, help="of the model in config.json")
    corpus.add_argument("--labels", type=int, default=400, help="labels a question of opinion")
    grade = stages.add_parser("grade", help="choose problems by how hard a policy finds them")
    grade.add_argument("--problems", type=Path, required=True, help="the file that was sampled on")
    grade.add_argument("--samples", type=Path, required=True, help="the policy's completions")
    grade.add_argument("--out", type=Path, required=True, help="folder of the two files")
    grade.add_argument("--each", type=int, default=50, help="problems of each grade in each file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    a = parse_arguments(argv)
    try:
        if a.stage == "corpus":
            if a.width < 8 or a.width % 8 or a.layers < 1:
                raise ValueError(
                    f"expected --width to be a multiple of 8 and --layers 1 or more, got "
                    f"{a.width} and {a.layers}"
                )
            config = model_config(a.width, a.layers)
            write_corpus(a.out, a.seed, a.sft, a.problems, a.heldout, a.labels, config)
        else:
            write_graded(a.problems, a.samples, a.out, a.each)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
