"""Few-shot prompts: exemplars from a file before the problem, all of them in one template.

No command of its own; eval.gsm8k and eval.math_problems prompt with it.
"""

from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path

from data.rows import check_text, read_rows

Exemplar = tuple[str, str]  # question, solution


def read_exemplars(
    path: str | None, count: int, keys: Sequence[tuple[str, str]], problems: Collection[str]
) -> list[Exemplar]:
    """The first `count` rows of a file, none of which is among the problems that are asked.

    keys: pairs of names for question and solution, of which the first that a row has counts.
    """
    if path is None:
        raise ValueError(f"this --prompt_style expects --shots, a file of {count} exemplars")
    exemplars = []
    for where, row in islice(read_rows(Path(path)), count):
        question, solution = next((pair for pair in keys if set(pair) <= set(row)), keys[0])
        asked = check_text(row.get(question), question, where)
        if asked in problems:
            raise ValueError(f"{where}: this exemplar is a problem of --data; pass other --shots")
        exemplars.append((asked, check_text(row.get(solution), solution, where)))
    if len(exemplars) < count:
        raise ValueError(f"--shots {path}: expected {count} rows, got {len(exemplars)}")
    return exemplars


def build_prompt(question: str, exemplars: Sequence[Exemplar], template: str) -> str:
    """Each exemplar in the template, its solution behind it, and the question in the last one."""
    shown = [template.format(asked) + f" {solution}\n\n" for asked, solution in exemplars]
    return "".join(shown) + template.format(question)
