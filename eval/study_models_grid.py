"""A plan on a real checkpoint, the model and the files it is run on -> the cells of the study.

All policies share one split of the pairs, by first human turn, and one cache of the reference's
log-probabilities. A policy is measured by its completions of the same held-out prompts (diversity,
entropy, length, cross-entropy under the reference; the reward, by a model that is trained once, in
a plan that has one) and on the benchmarks whose files are given. Where a benchmark's problems are
graded, the reference's completions from another seed than those that are scored grade them. As
in eval/study_grid.py each method is tried at every learning rate at seed 0, and the one with the
least held-out loss is trained with the other seeds and measured.

Expected seconds count matrix products: 2 per parameter for a token that is read, as many for each
of forward and backward in training, where the backward of a frozen weight has one product.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data.rows import data_files
from eval.results import data_digest
from eval.study_cells import Cell, folder_of
from eval.study_grid import chosen_rate, labels_of, train_name
from eval.study_models import MODEL_PLANS, Benchmark, ModelPlan
from eval.study_plans import Control, Grid, Method, Process, Source
from model.architecture import config_file
from model.checkpoint import empty_model

CPU_FLOPS = 5e10  # a second of one core: 135M parameters in float32
GPU_FLOPS = 2e14  # of one GPU: 7B parameters in bfloat16
GRADING_SEED = "999"  # of no policy: those are measured with 1000 and more
DRAWING = {"cpu": 2, "cuda": 20}  # so much slower is a token that is drawn than one that is read


@dataclass(frozen=True)
class ModelStudy:
    """A plan, and what it is run on."""

    plan: ModelPlan
    model: str  # folder
    data: tuple[str, ...]  # files of pairs
    benchmarks: Mapping[str, tuple[str, ...]]  # name -> flags that name its files, and others
    parameters: int
    device: str  # cpu or cuda
    flops: float  # of a worker, a second

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def about(self) -> str:
        return f"{self.plan.about}; {Path(self.model).name} on {self.grid.process.name}"

    @property
    def grid(self) -> Grid:
        """As eval/study_plans.py has it; the process has the name of the data."""
        plan = self.plan
        process = Process(data_name(self.data), "pairs", (), plan.train, plan.learning_rate,
                          "eval/loss", 0, Source(Path(self.model).name))  # fmt: skip
        return Grid(process, plan.methods, plan.controls, plan.rates, plan.seeds, plan.n)


def data_name(data: Sequence[str]) -> str:
    """A file's name, or that of the folder that several have in common."""
    paths = [str(Path(path).resolve()) for path in data]
    return Path(os.path.commonpath(paths)).name.partition(".")[0] or "pairs"


def plan_study(
    plan: str,
    model: str | None,
    data: Sequence[str],
    benchmarks: Sequence[str],
    allow_code_execution: bool,
    threads: int,
) -> ModelStudy:
    """The study that the flags of eval.study ask for; of the model only config.json is read.

    Raises ValueError or FileNotFoundError for what is missing, naming the flag.
    """
    if model is None or not data:
        raise ValueError(f"--plan {plan} expects --model, a checkpoint, and --data, its pairs")
    if not config_file(model).is_file():
        raise FileNotFoundError(f"--model expects a folder with config.json, got {model}")
    data_files(data)
    found = read_benchmarks(MODEL_PLANS[plan], benchmarks)
    if "humaneval" in found and not allow_code_execution:
        raise ValueError(
            "humaneval runs what the model wrote; pass --allow_code_execution true to let it"
        )
    if allow_code_execution and "humaneval" not in found:
        raise ValueError("--allow_code_execution is for humaneval, which --benchmarks has not")
    weights = empty_model(config_file(model), torch.float32).parameters()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flops = GPU_FLOPS if device == "cuda" else CPU_FLOPS * threads
    return ModelStudy(MODEL_PLANS[plan], model, tuple(data), found,
                      sum(weight.numel() for weight in weights), device, flops)  # fmt: skip


def read_benchmarks(plan: ModelPlan, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """NAME=FILE, for its --data, and NAME.FLAG=FILE -> the flags of each benchmark."""
    found: dict[str, dict[str, str]] = {}
    for word in words:
        key, _, file = word.partition("=")
        name, _, flag = key.partition(".")
        known = plan.benchmarks.get(name)
        if known is None or (flag or "data") not in flags_of(known):
            raise ValueError(
                f"--benchmarks expects NAME=FILE with a NAME of {', '.join(names_of(plan))}, "
                f"got {word!r}"
            )
        if not file or not Path(file).exists():
            raise FileNotFoundError(f"--benchmarks {key} expects a file or folder, got {file!r}")
        files = found.setdefault(name, {})
        if files.setdefault(flag or "data", file) != file:
            raise ValueError(f"--benchmarks {key} is given twice: {files[flag or 'data']}, {file}")
    for name, files in found.items():
        for flag in plan.benchmarks[name].needs:
            if flag not in files:
                key = name if flag == "data" else f"{name}.{flag}"
                raise ValueError(f"--benchmarks {name} needs {key}=FILE too")
    return {
        name: tuple(word for flag, file in files.items() for word in (f"--{flag}", file))
        for name, files in found.items()
    }


def names_of(plan: ModelPlan) -> list[str]:
    """What --benchmarks takes; `none` for a plan without."""
    return [
        name if flag == "data" else f"{name}.{flag}"
        for name, one in plan.benchmarks.items()
        for flag in flags_of(one)
    ] or ["none"]


def flags_of(benchmark: Benchmark) -> tuple[str, ...]:
    """Those that name a file; that of the difficulties may be left out."""
    return benchmark.needs + ("split",) * benchmark.graded


def graded(study: ModelStudy) -> list[str]:
    """The benchmarks whose problems the study itself has to grade."""
    return [
        name
        for name, files in study.benchmarks.items()
        if study.plan.benchmarks[name].graded and "--split" not in files
    ]


def describe(study: ModelStudy) -> dict:
    """For study.json."""
    return {
        "model": Path(study.model).name,
        "data": [describe_file(path) for path in study.data],
        "benchmarks": {
            name: [describe_file(file) for file in flags[1::2]]
            for name, flags in study.benchmarks.items()
        },
        "parameters": study.parameters,
        "flops": study.flops,
        "recipe": asdict(study.plan),
    }


def describe_file(path: str) -> dict[str, str]:
    """A file or a folder, wherever it lies."""
    return {"name": Path(path).name, "sha256": data_digest(path)}


# ------------------------------------------------------------------------------------------------
# cells


def next_cells(study: ModelStudy, rows: Sequence[Mapping], out: Path) -> list[Cell]:
    """All cells that can be named by now, in an order in which they can be run."""
    trained, grid = {row["cell"]: row for row in rows}, study.grid
    cells = [split_cell(study, out)]
    cells += [difficulty_cell(study, name, out) for name in graded(study)]
    cells += [reward_cell(study, out)] if study.plan.reward else []
    cells.append(base_cell(study, out))
    for method in grid.methods:
        cells += [train_cell(study, method, rate, 0, out) for rate in grid.rates]
        rate = chosen_rate(grid, method, trained)
        for seed in range(grid.seeds) if rate is not None else ():
            if seed:
                cells.append(train_cell(study, method, rate, seed, out))
            cells.append(test_cell(study, method, rate, seed, out))
            controls = (control for control in grid.controls if control.of == method.setting)
            cells += [control_cell(study, method, one, rate, seed, out) for one in controls]
    return cells


def count_cells(study: ModelStudy) -> dict[str, int]:
    """How many cells of each kind there will be."""
    grid = study.grid
    counts = {
        "split": 1,
        "difficulty": len(graded(study)),
        "judge": int(study.plan.reward is not None),
        "base": 1,
        "train": len(grid.methods) * (len(grid.rates) + grid.seeds - 1),
        "test": len(grid.methods) * grid.seeds,
        "decode": len(grid.controls) * grid.seeds,
    }
    return {kind: count for kind, count in counts.items() if count}


def split_name(study: ModelStudy) -> str:
    return f"{study.grid.process.name}/pairs"


def split_cell(study: ModelStudy, out: Path) -> Cell:
    plan, name = study.plan, split_name(study)
    command = ("-m", "data.split", "--data", *study.data, "--prompts", str(plan.prompts), "--pairs",
               str(plan.pairs), "--eval_pairs", str(plan.eval_pairs), "--out",
               str(folder_of(out, name)))  # fmt: skip
    return Cell(name, {"kind": "split", "process": study.grid.process.name}, (command,))


def difficulty_name(benchmark: str) -> str:
    return f"difficulty/{benchmark}"


def difficulty_cell(study: ModelStudy, name: str, out: Path) -> Cell:
    """The reference's completions of a benchmark, and the difficulties that they make."""
    benchmark, files = study.plan.benchmarks[name], study.benchmarks[name]
    folder = folder_of(out, difficulty_name(name))
    draw = ("-m", f"eval.{name}", "--model", study.model, *files, *benchmark.flags, "--seed",
            GRADING_SEED, "--out", f"{folder}/{name}")  # fmt: skip
    grade = ("-m", f"eval.{name}", *files, *benchmark.flags, "--samples",
             f"{folder}/{name}/samples.jsonl", "--write_split", f"{folder}/split.json")  # fmt: skip
    labels = {"kind": "difficulty", "process": study.grid.process.name}
    seconds = seconds_for(study, benchmark.read, benchmark.drawn)
    return Cell(difficulty_name(name), labels, (draw, grade), seconds=seconds)


def reward_name(study: ModelStudy) -> str:
    return f"{study.grid.process.name}/reward model"


def reward_cell(study: ModelStudy, out: Path) -> Cell:
    """The reward model, trained on the pairs that the policies are trained on."""
    reward, folder = study.plan.reward, folder_of(out, reward_name(study))
    data = folder_of(out, split_name(study))
    command = ("train.py", "--objective", "reward", "--model", study.model, "--data",
               f"{data}/train.jsonl", "--eval_data", f"{data}/eval.jsonl", *reward.train,
               "--learning_rate", f"{reward.learning_rate:g}", "--keep", "1", "--out_dir",
               f"{folder}/train")  # fmt: skip
    tokens = 2 * study.plan.pair_tokens * study.plan.pairs
    labels = {"kind": "judge", "process": study.grid.process.name}
    needs, seconds = (split_name(study),), seconds_for(study, tokens)
    return Cell(reward_name(study), labels, (command,), needs, seconds)


def measuring_needs(study: ModelStudy) -> tuple[str, ...]:
    """Cells whose files every measurement reads."""
    needs = (split_name(study), *map(difficulty_name, graded(study)))
    return needs + ((reward_name(study),) if study.plan.reward else ())


def base_cell(study: ModelStudy, out: Path) -> Cell:
    """The reference itself."""
    process = study.grid.process
    name = f"base/{process.name}"
    labels = {"kind": "base", "process": process.name, "source": process.source.name,
              "family": "base", "setting": "base", "tau": None, "alpha": None, "beta": None,
              "seed": 0}  # fmt: skip
    commands, seconds = measure(study, folder_of(out, name), (), (), 0, out)
    return Cell(name, labels, commands, measuring_needs(study), seconds)


def train_cell(study: ModelStudy, method: Method, rate: float, seed: int, out: Path) -> Cell:
    plan, process = study.plan, study.grid.process
    name, data = train_name(process, method, rate, seed), folder_of(out, split_name(study))
    labels = labels_of("train", process, method, rate, seed)
    command = ("train.py", "--model", study.model, "--data", f"{data}/train.jsonl", "--eval_data",
               f"{data}/eval.jsonl", *method.flags, *plan.train, "--learning_rate",
               f"{labels['learning_rate']:g}", "--seed", str(seed), "--reference", "cached",
               "--reference_cache", f"{data}/reference", "--sample_prompts", "0", "--keep", "1",
               "--out_dir", f"{folder_of(out, name)}/train")  # fmt: skip
    tokens = plan.pair_tokens * (2 * plan.pairs + plan.evaluations * plan.eval_pairs)
    return Cell(name, labels, (command,), (split_name(study),), seconds_for(study, tokens))


def test_cell(study: ModelStudy, method: Method, rate: float, seed: int, out: Path) -> Cell:
    trained = train_name(study.grid.process, method, rate, seed)
    name = trained.removesuffix("/train") + "/test"
    labels = labels_of("test", study.grid.process, method, rate, seed)
    policy = ("--adapter", f"{folder_of(out, trained)}/train")
    commands, seconds = measure(study, folder_of(out, name), policy, (), seed, out)
    return Cell(name, labels, commands, (trained, *measuring_needs(study)), seconds)


def control_cell(
    study: ModelStudy, method: Method, control: Control, rate: float, seed: int, out: Path
) -> Cell:
    """The same policy, drawn otherwise."""
    process = study.grid.process
    trained = train_name(process, method, rate, seed)
    name = f"{process.name}/{control.family}/{control.setting}/seed {seed}"
    labels = labels_of("decode", process, method, rate, seed) | {
        "family": control.family,
        "setting": control.setting,
        "tau": None,
        "decoding": list(control.flags),
    }
    policy = ("--adapter", f"{folder_of(out, trained)}/train")
    commands, seconds = measure(study, folder_of(out, name), policy, control.flags, seed, out)
    return Cell(name, labels, commands, (trained, *measuring_needs(study)), seconds)


def measure(
    study: ModelStudy,
    folder: Path,
    policy: tuple[str, ...],
    decoding: tuple[str, ...],
    seed: int,
    out: Path,
) -> tuple[tuple[tuple[str, ...], ...], float]:
    """Commands that draw completions and measure them, and the benchmarks; expected seconds."""
    plan, samples = study.plan, f"{folder}/samples.jsonl"
    prompts = f"{folder_of(out, split_name(study))}/prompts.jsonl"
    drawing = (*policy, *decoding, "--seed", str(1000 + seed))
    commands = [
        ("sample.py", "--model", study.model, *drawing, "--prompts", prompts, "--n", str(plan.n),
         *plan.sampling, "--out", samples),
        ("-m", "eval.diversity", "--samples", samples, "--embedding_model", study.model,
         "--reference", study.model, "--out", f"{folder}/diversity"),
    ]  # fmt: skip
    replies = plan.prompts * plan.n * plan.reply_tokens
    drawn, read = replies, 2 * replies
    if plan.reward:
        run = f"{folder_of(out, reward_name(study))}/train"
        commands.append(("-m", "eval.reward", "--reward_model", study.model, "--reward_adapter",
                         run, "--samples", samples, "--out", f"{folder}/reward"))  # fmt: skip
        read += replies
    for name, files in study.benchmarks.items():
        benchmark = plan.benchmarks[name]
        if not benchmark.drawn and decoding:
            continue
        if name in graded(study):
            files += ("--split", f"{folder_of(out, difficulty_name(name))}/split.json")
        asked = drawing if benchmark.drawn else policy
        commands.append(("-m", f"eval.{name}", "--model", study.model, *asked, *files,
                         *benchmark.flags, "--out", f"{folder}/{name}"))  # fmt: skip
        drawn, read = drawn + benchmark.drawn, read + benchmark.read
    return tuple(commands), seconds_for(study, read, drawn)


def seconds_for(study: ModelStudy, read: float, drawn: float = 0) -> float:
    """Of a worker, for tokens that are read and tokens that are drawn."""
    tokens = read + DRAWING[study.device] * drawn
    return 2 * study.parameters * tokens / study.flops
