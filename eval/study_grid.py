"""From a plan, and the rows that are there, to the cells that can be named by now.

All methods of a grid are tried at every learning rate at seed 0; the rate that is best on held-out
problems or pairs is the one that the other seeds are trained at, and that test problems see. A
search adds a method when all seeds of the last one are trained. So which cells there are depends on
the rows, and on nothing else: `next_cells` is a pure function.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.study_cells import Cell, folder_of
from eval.study_plans import TINY, Control, Grid, Method, Plan, Process, Source, spl
from eval.study_values import FLAT

TOKEN_LIMIT = "100"  # of a solution; the longest right one has about 60
DRAWN = 512  # completions of a problem, of which the resampled control keeps KEPT
KEPT = 32
VALIDATION_N = 16
SEARCHED = 5  # tau of a search, the first one included
PROBLEMS = 600  # that are not graded
EMBEDDED = "data/tiny"
SFT = ("--lora_rank", "0", "--batch_size", "16", "--learning_rate", "3e-3", "--warmup_steps", "100",
       "--epochs", "2", "--eval_every", "1000")  # as the embedded model  # fmt: skip

Rows = Mapping[str, Mapping]  # of trained policies, by cell


def next_cells(plan: Plan, rows: Sequence[Mapping], out: Path) -> list[Cell]:
    """All cells that can be named by now, in an order in which they can be run."""
    by_name = {row["cell"]: row for row in rows}
    cells: dict[str, Cell] = {}
    for grid in plan.grids:
        made = source_cells(grid, out) + label_cells(grid, out)
        for method in methods_of(grid, by_name):
            made += train_cells(grid, method, grid.rates, 0, out)
            rate = chosen_rate(grid, method, by_name)
            for seed in range(grid.seeds) if rate is not None else ():
                if seed:
                    made += train_cells(grid, method, (rate,), seed, out)
                made.append(test_cell(grid, method, rate, seed, out))
        made += control_cells(grid, by_name, out)
        cells |= {cell.name: cell for cell in made if cell.name not in cells}
    return list(cells.values())


def count_cells(plan: Plan) -> dict[str, int]:
    """How many cells of each kind there will be."""
    counts = dict.fromkeys(("source", "base", "labels", "judge", "train", "test", "draws"), 0)
    counts["decode"] = 0
    for grid in plan.grids:
        methods = SEARCHED if grid.search else len(grid.methods)
        counts["train"] += methods * (len(grid.rates) + grid.seeds - 1)
        counts["test"] += methods * grid.seeds
        counts["decode"] += len(grid.controls) * grid.seeds
        counts["draws"] += grid.seeds * any(control.tau is not None for control in grid.controls)
    for cell in next_cells(plan, [], Path()):
        if cell.labels["kind"] in ("source", "base", "labels", "judge"):
            counts[cell.labels["kind"]] += 1
    return {kind: count for kind, count in counts.items() if count}


# ------------------------------------------------------------------------------------------------
# what is chosen by rows


def train_name(process: Process, method: Method, rate: float, seed: int) -> str:
    return f"{process.name}/{method.family}/{method.setting}/rate {rate:.3g}/seed {seed}/train"


def chosen_rate(grid: Grid, method: Method, trained: Rows) -> float | None:
    """The only rate, or the one that seed 0 does best at; None as long as one has not been tried.

    It is 1 unless another is ahead for certain: on validation problems by more than a standard
    error of the difference in pass@1, on held-out pairs by more than FLAT of what the loss has
    fallen. Else noise would choose, and what is said of two tau might be true of two rates.
    """
    if len(grid.rates) == 1:
        return grid.rates[0]
    names = {rate: train_name(grid.process, method, rate, 0) for rate in grid.rates}
    if not trained.keys() >= set(names.values()):
        return None
    rows = {rate: trained[name] for rate, name in names.items()}
    if grid.process.chosen_by == "eval/loss":
        losses = {rate: row["curves"]["eval/loss"] for rate, row in rows.items()}
        best = min(losses, key=lambda rate: losses[rate][-1])
        fall, ahead = losses[1.0][0] - losses[1.0][-1], losses[1.0][-1] - losses[best][-1]
        return best if ahead > FLAT * fall else 1.0
    solved = {rate: np.array(row["validation"]) for rate, row in rows.items()}  # (P,) pass@1
    best = max(solved, key=lambda rate: solved[rate].mean())
    ahead = solved[best] - solved[1.0]
    return best if ahead.mean() > ahead.std(ddof=1) / math.sqrt(len(ahead)) else 1.0


def methods_of(grid: Grid, by_name: Rows) -> list[Method]:
    """Those of the grid; in a search, also what follows from those that all seeds have done.

    A step is the secant's in log tau, towards the entropy that the reference has on the validation
    problems, from the two tau that came nearest to it; at most by a factor of 2.
    """
    methods = list(grid.methods)
    base = by_name.get(base_name(grid))
    while grid.search and base is not None and len(methods) < SEARCHED:
        reached = [mean_entropy(grid, method, by_name) for method in methods]
        if None in reached:
            break
        target = base["validation_entropy"]
        tau = next_tau([method.tau for method in methods], reached, target)
        methods.append(spl(tau, methods[0].beta))
    return methods


def mean_entropy(grid: Grid, method: Method, by_name: Rows) -> float | None:
    """Of completions of the validation problems, over all seeds; None before they are trained."""
    rate = chosen_rate(grid, method, by_name)
    if rate is None:
        return None
    names = [train_name(grid.process, method, rate, seed) for seed in range(grid.seeds)]
    if not all(name in by_name for name in names):
        return None
    return sum(by_name[name]["validation_entropy"] for name in names) / len(names)


def next_tau(taus: Sequence[float], entropies: Sequence[float], target: float) -> float:
    """The tau after these, that have reached these entropies; to three digits."""
    order = sorted(range(len(taus)), key=lambda i: abs(entropies[i] - target))
    nearest, slope = order[0], 1.0  # nats for each doubling of tau, before there are two
    if len(order) > 1:
        run = math.log2(taus[nearest] / taus[order[1]])
        rise = entropies[nearest] - entropies[order[1]]
        slope = max(rise / run, 0.25) if run else slope  # noise may turn it around
    step = (target - entropies[nearest]) / slope
    tau = taus[nearest] * 2 ** max(-1.0, min(1.0, step))
    tau = float(f"{tau:.3g}")
    while tau in taus:
        tau = float(f"{tau * 1.01:.3g}")
    return tau


# ------------------------------------------------------------------------------------------------
# the reference and the pairs


def source_name(source: Source) -> str:
    return f"source/{source.name}"


def base_name(grid: Grid) -> str:
    problems = "graded" if grid.graded else "as they come"
    return f"base/{grid.process.source.name}/{problems}/n {grid.n}"


def model_of(source: Source, out: Path) -> str:
    return EMBEDDED if source == TINY else f"{folder_of(out, source_name(source))}/sft/model"


def problems_of(grid: Grid, out: Path) -> str:
    """The file of the test problems."""
    if grid.graded:
        return f"{EMBEDDED}/test.jsonl"
    return f"{folder_of(out, source_name(grid.process.source))}/more/heldout.jsonl"


def source_cells(grid: Grid, out: Path) -> list[Cell]:
    """The reference, its answers to the problems of the training pairs, and its measures."""
    source, name = grid.process.source, source_name(grid.process.source)
    folder, model, seconds = folder_of(out, name), model_of(source, out), 75.0
    corpus = ("-m", "data.synthetic", "corpus", "--out", f"{folder}/corpus")
    more = ("-m", "data.synthetic", "corpus", "--out", f"{folder}/more", "--seed", "3", "--sft",
            "200", "--problems", "10", "--heldout", str(PROBLEMS))  # fmt: skip
    if source == TINY:
        commands = [(*corpus, "--sft", "200"), more]
    else:
        shape = ("--width", str(source.width), "--layers", str(source.layers))
        sft = ("train.py", "--objective", "sft", "--init", f"{folder}/corpus/config.json", "--data",
               f"{folder}/corpus/sft.jsonl", "--eval_data", f"{folder}/corpus/heldout.jsonl", *SFT,
               "--out_dir", f"{folder}/sft")  # fmt: skip
        commands, seconds = [(*corpus, *shape), more, sft], 900.0
    for split, seed in (("problems", "1"), ("heldout", "2")):
        problems = f"{folder}/corpus/{split}.jsonl"
        commands.append(
            draw(model, problems, f"{folder}/{split}.jsonl", "--n", "8", "--seed", seed)
        )
    return [
        Cell(name, {"kind": "source"}, tuple(commands), seconds=seconds),
        base_cell(grid, name, model, out),
    ]


def base_cell(grid: Grid, source: str, model: str, out: Path) -> Cell:
    """The reference itself."""
    name = base_name(grid)
    folder = folder_of(out, name)
    labels = {"kind": "base", "source": grid.process.source.name, "family": "base",
              "setting": "base", "tau": None, "alpha": None, "beta": None, "seed": 0}  # fmt: skip
    samples = draw(model, problems_of(grid, out), f"{folder}/samples.jsonl", "--n", str(grid.n),
                   "--seed", "1000")  # fmt: skip
    commands = (
        samples,
        *measure(grid, folder, out),
        opinions(model, folder),
        validate(model, folder),
    )
    return Cell(name, labels, commands, (source,), 40 + grid.n / 2)


def draw(model: str, prompts: str | Path, out: str | Path, *more: str) -> tuple[str, ...]:
    return ("sample.py", "--model", model, "--prompts", str(prompts), "--max_new_tokens",
            TOKEN_LIMIT, "--out", str(out), *more)  # fmt: skip


def labels_name(by: str, process: Process, seed: int) -> str:
    return f"{by}/labels of {process.source.name}/seed {seed}"


def label_cells(grid: Grid, out: Path) -> list[Cell]:
    """Pairs to train on and held-out pairs, of each seed: other solutions and other coins."""
    process, cells = grid.process, []
    source = source_name(process.source)
    for seed in range(grid.seeds):
        name = labels_name(process.name, process, seed)
        folder = folder_of(out, name)
        commands = [label(process, folder_of(out, source), split, seed, folder)
                    for split in ("problems", "heldout")]  # fmt: skip
        needs: tuple[str, ...] = (source,)
        if process.judge is not None:
            judge = judge_cell(grid, seed, out)
            cells.append(judge)
            commands += relabel(process, folder_of(out, judge.name), folder, out)
            needs += (judge.name,)
        labels = {"kind": "labels", "process": process.name, "seed": seed}
        cells.append(Cell(name, labels, tuple(commands), needs, seconds=5))
    return cells


def label(process: Process, source: Path, split: str, seed: int, folder: Path) -> tuple[str, ...]:
    target = {"problems": "train", "heldout": "eval"}[split]
    if process.judge is not None:
        target = f"before/{target}"
    words = ("-m", "data.labels", "--process", process.by, "--problems",
             f"{source}/corpus/{split}.jsonl", "--samples", f"{source}/{split}.jsonl",
             *process.labels, "--seed", str(seed), "--out", f"{folder}/{target}.jsonl")  # fmt: skip
    if split == "heldout":
        words += ("--pairs", "1", *(("--votes", "20") if has_opinions(process) else ()))
    return words


def has_opinions(process: Process) -> bool:
    return "--opinions" in process.labels


def judge_cell(grid: Grid, seed: int, out: Path) -> Cell:
    """A reward model, trained on pairs of the process that the grid's judge has learnt from."""
    process = grid.process
    name = f"judge/{process.judge}/seed {seed}"
    folder, source = folder_of(out, name), source_name(process.source)
    model = model_of(process.source, out)
    samples = folder_of(out, source)
    labels = ("-m", "data.labels", "--process", process.judge, "--problems",
              f"{samples}/corpus/problems.jsonl", "--samples", f"{samples}/problems.jsonl",
              "--pairs", "3", "--seed", str(100 + seed),
              "--out", f"{folder}/pairs.jsonl")  # fmt: skip
    train = ("train.py", "--objective", "reward", "--model", model, "--data",
             f"{folder}/pairs.jsonl", "--batch_size", "16", "--learning_rate", "1e-3", "--seed",
             str(seed), "--out_dir", f"{folder}/train")  # fmt: skip
    about = {"kind": "judge", "process": process.judge, "seed": seed}
    return Cell(name, about, (labels, train), (source,), 60)


def relabel(process: Process, judge: Path, folder: Path, out: Path) -> list[tuple[str, ...]]:
    return [
        ("-m", "eval.reward", "--reward_model", model_of(process.source, out), "--reward_adapter",
         f"{judge}/train", "--data", f"{folder}/before/{split}.jsonl", "--relabel",
         f"{folder}/{split}.jsonl", "--out", f"{folder}/rewards-{split}")
        for split in ("train", "eval")
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------
# policies


def train_cells(
    grid: Grid, method: Method, rates: Sequence[float], seed: int, out: Path
) -> list[Cell]:
    """The training at each rate, and what it does to validation problems."""
    process, cells = grid.process, []
    model = model_of(process.source, out)
    for rate in rates:
        name = train_name(process, method, rate, seed)
        pairs = labels_name(process.name, process, seed)
        folder, data = folder_of(out, name), folder_of(out, pairs)
        labels = labels_of("train", process, method, rate, seed)
        train = ("train.py", "--model", model, "--data", f"{data}/train.jsonl", "--eval_data",
                 f"{data}/eval.jsonl", *method.flags, *process.train, "--learning_rate",
                 f"{labels['learning_rate']:g}", "--seed", str(seed), "--reference", "cached",
                 "--reference_cache", f"{data}/reference", "--sample_prompts", "0", "--keep", "1",
                 "--out_dir", f"{folder}/train")  # fmt: skip
        commands = (train, validate(model, folder, "--adapter", f"{folder}/train"))
        cells.append(Cell(name, labels, commands, (pairs,), process.seconds + 10))
    return cells


def validate(model: str, folder: Path, *policy: str) -> tuple[str, ...]:
    return ("-m", "eval.arithmetic", "--model", model, *policy, "--data",
            f"{EMBEDDED}/validation.jsonl", "--n", str(VALIDATION_N), "--max_new_tokens",
            TOKEN_LIMIT, "--out", f"{folder}/validation")  # fmt: skip


def labels_of(kind: str, process: Process, method: Method, rate: float, seed: int) -> dict:
    return {
        "kind": kind,
        "process": process.name,
        "source": process.source.name,
        "family": method.family,
        "setting": method.setting,
        "tau": method.tau,
        "alpha": method.alpha,
        "beta": method.beta,
        "rate": rate,
        "learning_rate": float(f"{rate * process.learning_rate:.3g}"),
        "seed": seed,
    }


def test_cell(grid: Grid, method: Method, rate: float, seed: int, out: Path) -> Cell:
    """The policy at its chosen rate: solutions, diversity, opinions."""
    process = grid.process
    trained = train_name(process, method, rate, seed)
    name = trained.removesuffix("/train") + "/test"
    folder, run = folder_of(out, name), f"{folder_of(out, trained)}/train"
    model = model_of(process.source, out)
    samples = draw(model, problems_of(grid, out), f"{folder}/samples.jsonl", "--adapter", run,
                   "--n", str(grid.n), "--seed", str(1000 + seed))  # fmt: skip
    pairs = folder_of(out, labels_name(process.name, process, seed)) / "train.jsonl"
    asked = ("--adapter", run, *(("--pairs", str(pairs)) if has_opinions(process) else ()))
    commands = (samples, *measure(grid, folder, out), opinions(model, folder, *asked))
    labels = labels_of("test", process, method, rate, seed)
    return Cell(name, labels, commands, (trained,), 20 + grid.n / 2)


def measure(grid: Grid, folder: Path, out: Path) -> tuple[tuple[str, ...], ...]:
    samples = ("--samples", f"{folder}/samples.jsonl")
    solve = ("-m", "eval.arithmetic", *samples, "--data", problems_of(grid, out), "--out",
             f"{folder}/arithmetic")  # fmt: skip
    diversity = ("-m", "eval.diversity", *samples, "--n", "16", "--reference",
                 model_of(grid.process.source, out), "--out", f"{folder}/diversity")  # fmt: skip
    return solve, diversity


def opinions(model: str, folder: Path, *policy: str) -> tuple[str, ...]:
    return ("-m", "eval.opinions", "--model", model, *policy, "--out", f"{folder}/opinions")


# ------------------------------------------------------------------------------------------------
# controls


def control_cells(grid: Grid, trained: Rows, out: Path) -> list[Cell]:
    """Each control on each seed of the policy that it draws from, once its rate is chosen."""
    methods = {method.setting: method for method in grid.methods if method.family == "spl"}
    cells = []
    for control in grid.controls:
        method = methods[control.of]
        rate = chosen_rate(grid, method, trained)
        for seed in range(grid.seeds) if rate is not None else ():
            cells += control_cell(grid, method, control, rate, seed, out)
    return cells


def control_cell(
    grid: Grid, method: Method, control: Control, rate: float, seed: int, out: Path
) -> list[Cell]:
    """Draws of the policy, measured; those to be resampled are a cell of their own before it."""
    policy = train_name(grid.process, method, rate, seed)
    name = f"{grid.process.name}/{control.family}/{control.setting}/seed {seed}"
    folder, run = folder_of(out, name), f"{folder_of(out, policy)}/train"
    labels = labels_of("decode", grid.process, method, rate, seed) | {
        "family": control.family,
        "setting": control.setting,
        "tau": method.tau if control.family.startswith("spl") else control.tau,
        "decoding": list(control.flags),
    }
    model, prompts = model_of(grid.process.source, out), problems_of(grid, out)
    more = ("--adapter", run, "--seed", str(1000 + seed), *control.flags)
    if control.tau is None:
        draws = draw(model, prompts, folder / "samples.jsonl", *more, "--n", str(grid.n))
        commands = (draws, *measure(grid, folder, out))
        return [Cell(name, labels, commands, (policy,), 20 + grid.n / 2)]
    all_name = f"{grid.process.name}/{control.family}/draws/seed {seed}"
    draws = folder_of(out, all_name) / "drawn.jsonl"
    command = draw(model, prompts, draws, *more, "--n", str(DRAWN))
    keep = ("-m", "eval.resample", "--samples", str(draws), "--tau", f"{control.tau:g}", "--n",
            str(KEPT), "--seed", str(seed), "--out", f"{folder}/samples.jsonl")  # fmt: skip
    return [
        Cell(all_name, labels | {"kind": "draws"}, (command,), (policy,), DRAWN / 2),
        Cell(name, labels, (keep, *measure(grid, folder, out)), (all_name,), 20),
    ]
