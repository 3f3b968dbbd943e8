r"""Whose answers does a judge prefer, a policy's or a baseline's? As Arena-Hard asks.

    python sample.py --model MODEL --prompts question.jsonl --max_new_tokens 2048 --out ours.jsonl
    python -m eval.win_rate --data question.jsonl --samples ours.jsonl \
        --baseline_answers gpt-4-0314.jsonl.gz --judge_url https://api.openai.com/v1 \
        --judge_name gpt-4o-mini-2024-07-18 --out runs/win-rate

--data: rows with `prompt`, and for Arena-Hard's files `uid` and `category`. --samples and
--baseline_answers: what sample.py writes, or Arena-Hard's answer files (`uid`,
`messages[-1].content.answer`). --baseline is something else: the results of another policy on the
same prompts against the same answers, for paired differences. How a judge is named and what it
leaves stands in eval/judge.py.

In the first game the baseline is assistant A, in the second the policy. The frame of the question
and the five verdicts [[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]] are Arena-Hard's; the
instructions say what its own say, in our words, and --judge_prompt replaces them. The last label in
double brackets counts, or without any in single ones, as in Arena-Hard v2.0; one of its five
mirrored spellings ([[A<B]]) is read as what it means, any other is unknown. Nothing is asked twice
for a verdict. A prompt with an unknown verdict is left out whole: a single game would carry the
judge's bias for a position.

    win_rate               won 1, tie 1/2, lost 0; the mean over the games
    win_rate_arena_hard    a game with >> counts three times
    win, tie, loss         shares of games
    bradley_terry          log-odds of winning, log((wins + 1/2) / (losses + 1/2))
    win_rate_length_controlled, win_rate_style_controlled
                           where both answers are equally long, or alike in style (eval/style.py)
    longer                 how often the policy's answer is the longer: near 0 and near 1 there is
                           nothing to tell length by, and the controlled rates are extrapolations
    position_consistency   both games have the same winner, or none
    first_position         how often A wins: 1/2 without a bias for a position
    unknown                share of verdicts that cannot be read

Controlled rates are those of a logistic regression of the outcomes on an intercept and the style
differences, at a difference of zero. Arena-Hard standardises the differences first, which moves
their mean to zero: its intercept is then the rate at the mean difference. Intervals are over
prompts; Arena-Hard draws games, and those with >> as three independent ones, which is too narrow.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.rows import check_text, read_rows
from eval.bradley_terry import fit_logistic, sigmoid
from eval.judge import (
    JudgeConfig,
    check_baseline,
    check_config,
    judge,
    read_asked,
    read_instructions,
    read_problems,
    report_judged,
)
from eval.results import Metrics, Statistic, data_digest, json_digest
from eval.style import STYLE, style_difference, style_of
from model import parallel
from model.config import parse_config
from model.run import run_main

LABELS = re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]")
VERDICTS = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}  # what A gets
MIRRORED = {"B<<A": "A>>B", "B<A": "A>B", "B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A"}
MUCH = 3  # how often Arena-Hard counts a game with >>

OPENING = (
    "You are an impartial judge. A user has written a prompt, and two AI assistants, A and B, have "
    "answered it. Decide which answer serves the user better.\n\n"
)
OWN_ANSWER = (
    "Before you look at the two answers, write your own answer to the prompt. Then compare both "
    "assistants' answers with yours.\n\n"
)
CRITERIA = (
    "Find what is wrong or inaccurate in each answer and correct it.\n\n"
    "Ask whether each answer is helpful: it does what the prompt asks for, and where the prompt is "
    "ambiguous or can be read in several ways, it is more helpful to ask or to say so than to "
    "guess. Ask whether it is relevant: every part of it belongs to what was asked. Ask whether it "
    "is concise: clear, without words too many.\n\n"
    "Then consider creativity and novelty where they are called for. Last, name what important "
    "information is missing that would help the user.\n\n"
    "Explain your judgement. After that give your verdict, exactly one of these five labels:\n\n"
    "1. Assistant A is much better: [[A>>B]]\n"
    "2. Assistant A is slightly better: [[A>B]]\n"
    "3. Both are about equally good: [[A=B]]\n"
    "4. Assistant B is slightly better: [[B>A]]\n"
    "5. Assistant B is much better: [[B>>A]]\n\n"
    'End with a line such as: "My final verdict is a tie: [[A=B]]".'
)
FRAME = (
    "<|User Prompt|>\n{prompt}\n\n"
    "<|The Start of Assistant A's Answer|>\n{a}\n<|The End of Assistant A's Answer|>\n\n"
    "<|The Start of Assistant B's Answer|>\n{b}\n<|The End of Assistant B's Answer|>"
)


@dataclass(frozen=True)
class WinRateConfig(JudgeConfig):
    samples: str | None = None  # the policy's answers, of sample.py or an Arena-Hard answer file
    completion: int = 0  # which of several completions is the answer
    baseline_answers: str | None = None  # the answers it plays against, in either form


# ------------------------------------------------------------------------------------------------
# answers and questions


def read_answers(path: Path, flag: str, problems: Sequence[Mapping], completion: int) -> list[str]:
    """The answer to each problem, from a samples file or an Arena-Hard answer file."""
    first = next((row for _, row in read_rows(path)), {})
    if "completions" not in first:
        return arena_hard_answers(path, flag, problems)
    completions = read_asked(path, problems)
    for index, texts in enumerate(completions):
        if completion >= len(texts):
            raise ValueError(
                f"{path}: expected more than {completion} completions for problem {index}, got "
                f"{len(texts)}; pass a smaller --completion"
            )
    return [texts[completion] for texts in completions]


def arena_hard_answers(path: Path, flag: str, problems: Sequence[Mapping]) -> list[str]:
    answers = {}
    for where, row in read_rows(path):
        try:
            content = row["messages"][-1]["content"]
            uid, answer = row["uid"], content if isinstance(content, str) else content["answer"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(
                f"{where}: --{flag} expects `index` and `completions`, or `uid` and "
                f"`messages[-1].content.answer`, got {sorted(row)}"
            ) from None
        if check_text(uid, "uid", where) in answers:
            raise ValueError(f"{where}: expected a uid not yet seen, got {uid!r}; drop one of them")
        answers[uid] = check_text(answer, "answer", where)
    missing = [i for i, problem in enumerate(problems) if problem["uid"] not in answers]
    if missing:
        raise ValueError(
            f"{path}: no answer to {len(missing)} of {len(problems)} problems, the first is "
            f"{missing[0]} with uid {problems[missing[0]]['uid']!r}; pass the --data they were "
            "made for"
        )
    return [answers[problem["uid"]] for problem in problems]


def instructions(problem: Mapping, replaced: str | None) -> str:
    """For the judge; its own answer is not asked for in creative writing, as in Arena-Hard v2.0."""
    if replaced is not None:
        return replaced
    own_answer = "" if problem["category"] == "creative_writing" else OWN_ANSWER
    return OPENING + own_answer + CRITERIA


def ask_both_ways(prompt: str, system: str, ours: str, theirs: str) -> list[list[dict[str, str]]]:
    """The two games of a prompt: the baseline is A, then the policy is."""
    return [
        [
            {"role": "system", "content": system},
            {"role": "user", "content": FRAME.format(prompt=prompt, a=a, b=b)},
        ]
        for a, b in ((theirs, ours), (ours, theirs))
    ]


# ------------------------------------------------------------------------------------------------
# verdicts and numbers


def read_verdict(text: str) -> str | None:
    """The last label in double brackets, without any in single ones, if it is one of the five."""
    labels = next(filter(None, (pattern.findall(text.upper()) for pattern in LABELS)), [None])
    label = MIRRORED.get(labels[-1], labels[-1])
    return label if label in VERDICTS else None


def score_prompt(judgements: Sequence[str], ours: str, theirs: str) -> dict:
    """verdicts, the policy's outcome of each game, and how both answers look."""
    verdicts = [read_verdict(text) for text in judgements]
    known = None not in verdicts
    first, second = (VERDICTS.get(verdict) for verdict in verdicts)
    return {
        "verdicts": verdicts,
        "known": known,
        "outcomes": [1 - first, second] if known else None,
        "policy": style_of(ours),
        "opponent": style_of(theirs),
    }


def metric_values(items: Sequence[Mapping], left_out: frozenset[int]) -> Metrics:
    """name -> see the top of the file; left_out: indices of prompts that only `unknown` is of."""
    values = {"unknown": [item["verdicts"].count(None) / 2 for item in items]}
    items = [item for item in items if item["index"] not in left_out]
    if not items:
        return values
    outcomes = np.array([item["outcomes"] for item in items], dtype=np.float64)  # (N, 2)
    weights = [[MUCH if ">>" in v else 1 for v in item["verdicts"]] for item in items]
    weights = np.array(weights, dtype=np.float64)  # (N, 2)
    rates = outcomes.mean(axis=1)  # (N,)
    style = [style_difference(item["policy"], item["opponent"]) for item in items]
    rows = np.column_stack([rates, style])  # (N, 1 + len(STYLE))
    won = np.stack([(outcomes * weights).sum(axis=1), weights.sum(axis=1)], axis=1)  # (N, 2)
    values |= {
        "win_rate": rates.tolist(),
        "win_rate_arena_hard": Statistic(won, ratio, 0, 1),
        "win_rate_length_controlled": Statistic(rows[:, :2], rate_at_zero, 0, 1),
        "win_rate_style_controlled": Statistic(rows, rate_at_zero, 0, 1),
        "bradley_terry": Statistic(rates[:, None], log_odds),
        "win": (outcomes == 1).mean(axis=1).tolist(),
        "tie": (outcomes == 0.5).mean(axis=1).tolist(),
        "loss": (outcomes == 0).mean(axis=1).tolist(),
        "position_consistency": (outcomes[:, 0] == outcomes[:, 1]).astype(float).tolist(),
        "first_position": ((1 - outcomes[:, 0] + outcomes[:, 1]) / 2).tolist(),
        "longer": ((np.sign(rows[:, 1]) + 1) / 2).tolist(),  # a half where both are equally long
    }
    for name in STYLE:
        for side in ("policy", "opponent"):
            values[f"{name}/{side}"] = [float(item[side][name]) for item in items]
    categories = sorted({str(item["category"]) for item in items})
    for category in categories if len(categories) > 1 else ():
        chosen = [str(item["category"]) == category for item in items]
        values[f"win_rate/{category}"] = rates[chosen].tolist()
    return values


def ratio(rows: np.ndarray) -> float:
    """The mean over games, from (N, 2) sums of weighted outcomes and of weights."""
    won, weight = rows.sum(axis=0)
    return float(won / weight)


def log_odds(rows: np.ndarray) -> float:
    """Strength against the baseline, from (N, 1) win rates; see eval/bradley_terry.py."""
    won, lost = rows.sum(), (1 - rows).sum()
    return float(np.log((won + 0.5) / (lost + 0.5)))


def rate_at_zero(rows: np.ndarray) -> float:
    """The win rate where all differences are zero, from (N, 1 + K) win rates and differences."""
    features = np.column_stack([np.ones(len(rows)), rows[:, 1:]])
    return float(sigmoid(fit_logistic(features, rows[:, 0])[0]))


def main() -> None:
    config = parse_config(WinRateConfig)
    check_config(config)
    if config.baseline_answers is None or not Path(config.baseline_answers).is_file():
        raise FileNotFoundError(f"--baseline_answers expects a file, got {config.baseline_answers}")
    if config.completion < 0:
        raise ValueError(f"--completion expects 0 or more, got {config.completion}")
    problems = read_problems(config)
    ours = read_answers(Path(config.samples), "samples", problems, config.completion)
    theirs = read_answers(Path(config.baseline_answers), "baseline_answers", problems, 0)
    replaced = read_instructions(config.judge_prompt)
    systems = [instructions(problem, replaced) for problem in problems]
    settings = asdict(config) | {
        "data_sha256": data_digest(config.data),
        "samples_sha256": data_digest(config.samples),
        "baseline_answers_sha256": json_digest(theirs),
        "instructions_sha256": json_digest(systems),
    }
    check_baseline(config, "win_rate", settings, len(problems), metric_values)
    prompts = [problem["prompt"] for problem in problems]
    games = [ask_both_ways(*row) for row in zip(prompts, systems, ours, theirs, strict=True)]
    judgements = judge(config, [question for pair in games for question in pair])
    if not parallel.is_main():
        return
    texts = [judgement["text"] for judgement in judgements]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    items = [
        {"index": i, "uid": problem["uid"], "category": problem["category"]}
        | score_prompt(pair, *answers)
        for i, (problem, pair, *answers) in enumerate(
            zip(problems, pairs, ours, theirs, strict=True)
        )
    ]
    report_judged(config, "win_rate", settings, judgements, items, metric_values)


if __name__ == "__main__":
    run_main(main)
