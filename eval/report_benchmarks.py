"""The benchmarks of a study on a real checkpoint: which numbers are shown, and their tables.

No command of its own. `rows` are those of one part of a study, see eval/report_rows.py.
"""

import re
from collections.abc import Iterator, Sequence

from eval.page import show, table
from eval.report_rows import Row, estimate, measured, setting_title, settings
from eval.report_tables import NONE, numbers_text

NAMES = {
    "gsm8k": "GSM8K",
    "math_problems": "MATH",
    "humaneval": "HumanEval",
    "mmlu_pro": "MMLU-Pro",
    "ifeval": "IFEval",
    "mmlu": "MMLU",
    "truthfulqa": "TruthfulQA",
    "reward": "Reward model",
}
TRIES = ("pass@1", "pass@N", "majority@N")
SHOWN = {  # eval.TASK -> what of it is shown; N stands for the most completions
    "gsm8k": ("pass@1", "pass@N", "pass@N/easy", "pass@N/medium", "pass@N/hard", "majority@N",
              "distinct"),
    "math_problems": (*TRIES, "pass@N/Level 1", "pass@N/Level 3", "pass@N/Level 5", "distinct"),
    "humaneval": ("pass@1", "pass@N"),
    "mmlu_pro": ("accuracy",),
    "ifeval": ("prompt_strict", "instruction_strict"),
    "mmlu": ("accuracy", "ece", "brier", "mass"),
    "truthfulqa": ("mc1", "mc2", "letters/accuracy", "letters/ece", "letters/brier"),
    "reward": ("reward@1", "reward@N"),
}  # fmt: skip
UNITS = {
    "mass": "probability of the letters",
    "ece": "ECE",
    "brier": "Brier score",
    "distinct": "share of solutions",
    "reward": "reward",
}  # by the beginning of a name; others: a fraction of the problems


def shown_metrics(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """TASK:NAME, title and y axis of what the rows have of SHOWN."""
    known = {name for row in measured(rows) for name in row["metrics"]}
    for task, names in SHOWN.items():
        drawn = (re.fullmatch(rf"{task}:(?:pass|reward)@(\d+)", name) for name in known)
        most = max((int(found[1]) for found in drawn if found), default=1)
        for name in dict.fromkeys(name.replace("@N", f"@{most}") for name in names):
            if f"{task}:{name}" in known:
                kind = re.split("[@/]", name.removeprefix("letters/"))[0]
                unit = UNITS.get(kind, "fraction of problems")
                yield f"{task}:{name}", f"{NAMES[task]}, {name}", unit


def benchmarks_html(rows: Sequence[Row]) -> str:
    """Each setting's numbers, a table for each benchmark."""
    rows, html = measured(rows), ""
    for task, name in NAMES.items():
        metrics = [metric for metric, *_ in shown_metrics(rows) if metric.startswith(f"{task}:")]
        lines = []
        for same in settings(rows).values():
            found = [estimate(same, metric) for metric in metrics]
            cells = [numbers_text(one) if one else NONE for one in found]
            lines += [[show(setting_title(same[0])), *cells]] if any(found) else []
        columns = ["setting", *(metric.partition(":")[2] for metric in metrics)]
        html += f"<h4>{show(name)}</h4>\n{table(columns, lines, 'benchmark')}" if lines else ""
    return html
