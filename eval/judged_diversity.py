r"""How far apart are the completions of a prompt, in a judge's eyes? Three scores from 1 to 5.

    python sample.py --model MODEL --prompts prompts.jsonl --n 16 --out ours.jsonl
    python -m eval.judged_diversity --data prompts.jsonl --samples ours.jsonl \
        --judge_url https://api.openai.com/v1 --judge_name gpt-4o-mini --out runs/diversity

    logical   do the completions disagree: other claims, conclusions, advice?
    content   do they speak of other things: topics, examples, arguments?
    surface   are they put in other words: vocabulary, structure, length, tone?

The three are those of "Diverse Preference Learning for Capabilities and Alignment" (SPL, arXiv
2511.08594), which shows a judge 16 responses to each of 500 prompts. Its wording is not published:
ours need not give the numbers of the paper, and --judge_prompt replaces it. One question has all
completions of a prompt, and its answer all three scores, each on a line `logical: [[k]]`. The last
such line counts; a score that is not there, or not a whole number from 1 to 5, is unknown, and a
prompt with an unknown score is left out. How a judge is named and what it leaves stands in
eval/judge.py. More completions can differ more: compare results of one --n.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
from eval.results import Metrics, data_digest, json_digest
from model import parallel
from model.config import parse_config
from model.run import run_main

ASPECTS = ("logical", "content", "surface")
SCORE = re.compile(r"\b(logical|content|surface)\b[^\[\]\n]{0,30}\[\[([^\]\n]{0,99})\]\]")
SCALE = {str(k): k for k in range(1, 6)}
INSTRUCTIONS = """\
You will see a prompt and a number of responses to it, each drawn independently. Judge how diverse \
they are as a set. How good they are does not matter, and neither does their order.

Give three scores, each a whole number from 1 to 5, and judge each by itself:

logical: how far the responses disagree in what they claim, conclude or advise.
1: all say the same or agree. 3: some contradict others on points that matter. 5: most are \
incompatible with each other.

content: how far the responses differ in what they speak of: topics, facts, examples, arguments.
1: all have the same content. 3: they share a core and differ in much beside it. 5: they have \
hardly anything in common.

surface: how far the responses differ in how they are put: words, sentences, structure, tone.
1: nearly the same text. 3: similar in form, in other words. 5: of quite different form.

First compare the responses in a few sentences. Then end with exactly these three lines, a number \
in place of each k:

logical: [[k]]
content: [[k]]
surface: [[k]]"""


@dataclass(frozen=True)
class JudgedDiversityConfig(JudgeConfig):
    n: int | None = None  # completions of each prompt that the judge sees; none: all


def read_sets(path: Path, problems: Sequence[Mapping], n: int | None) -> list[list[str]]:
    """The first n completions of each problem, as many of one as of another."""
    completions = read_asked(path, problems)
    counts = sorted(map(len, completions))
    if n is None and counts[0] < counts[-1]:
        raise ValueError(
            f"{path}: {counts[0]} to {counts[-1]} completions of a problem, and more can differ "
            f"more; pass --n {counts[0]}"
        )
    n = counts[0] if n is None else n
    if not 2 <= n <= counts[0]:
        raise ValueError(
            f"{path}: expected 2 or more completions of each problem, and --n of them; got "
            f"{counts[0]} of one and --n {n}; draw more with sample.py --n"
        )
    return [texts[:n] for texts in completions]


def ask_about(prompt: str, completions: Sequence[str], system: str) -> list[dict[str, str]]:
    shown = [
        f"<|The Start of Response {i}|>\n{text}\n<|The End of Response {i}|>"
        for i, text in enumerate(completions, start=1)
    ]
    frame = "\n\n".join([f"<|User Prompt|>\n{prompt}", *shown])
    return [{"role": "system", "content": system}, {"role": "user", "content": frame}]


def read_scores(text: str) -> dict[str, int | None]:
    """aspect -> 1 to 5, or None where the judge's last word on it is no such number."""
    said = dict(SCORE.findall(text.lower()))  # of an aspect that comes twice, the last
    return {aspect: SCALE.get(said.get(aspect, "").strip()) for aspect in ASPECTS}


def score_set(text: str) -> dict:
    scores = read_scores(text)
    return {"scores": scores, "known": None not in scores.values()}


def metric_values(items: Sequence[Mapping], left_out: frozenset[int]) -> Metrics:
    """The mean of each score, without the prompts left out; the share of unknown ones of all."""
    unknown = [list(item["scores"].values()).count(None) / len(ASPECTS) for item in items]
    items = [item for item in items if item["index"] not in left_out]
    if not items:
        return {"unknown": unknown}
    scores = {aspect: [float(item["scores"][aspect]) for item in items] for aspect in ASPECTS}
    return {"unknown": unknown} | scores


def main() -> None:
    config = parse_config(JudgedDiversityConfig)
    check_config(config)
    problems = read_problems(config)
    sets = read_sets(Path(config.samples), problems, config.n)
    system = read_instructions(config.judge_prompt) or INSTRUCTIONS
    settings = asdict(config) | {
        "n": len(sets[0]),
        "data_sha256": data_digest(config.data),
        "samples_sha256": data_digest(config.samples),
        "instructions_sha256": json_digest(system),
    }
    check_baseline(config, "judged_diversity", settings, len(problems), metric_values)
    prompts = [problem["prompt"] for problem in problems]
    questions = [ask_about(*row, system) for row in zip(prompts, sets, strict=True)]
    judgements = judge(config, questions)
    if not parallel.is_main():
        return
    items = [{"index": i} | score_set(judgement["text"]) for i, judgement in enumerate(judgements)]
    report_judged(config, "judged_diversity", settings, judgements, items, metric_values)


if __name__ == "__main__":
    run_main(main)
