"""The plans of the study: who labels, which methods at which rates and seeds, which controls.

    quick        three tau, one seed: ten minutes on two cores
    full         the papers' grid of tau, three other beta, DPO with beta' = tau * beta, f-DPO, and
                 what needs no training: DPO at token temperatures, top-p, min-p, resampled
    temperature  each tau sampled at token temperatures from 0.1 to 2
    noise        flipped labels against labels that a divided population gives
    reward_swap  one set of pairs, labelled by reward models that learnt from others
    long         10,000 steps
    size         a smaller model beside the embedded one: does the best tau move?
    difficulty   600 problems as they come: the best tau against the reference's pass rate
    auto_tau     a search for the tau that keeps the reference's entropy on held-out problems

eval/study_grid.py makes cells of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

TAUS = (0.5, 0.8, 0.9, 0.95, 1.0, 1.1, 1.2, 1.5, 2.0, 4.0, 10.0, 11.0)  # of both papers, and
# 10, at which alpha is 1
BETA = 0.1  # [SPL section 4]
RATES = (1 / 3, 1.0, 3.0)


@dataclass(frozen=True)
class Method:
    """A training: the flags of train.py that say what is optimised."""

    family: str
    setting: str  # within the family
    flags: tuple[str, ...]
    tau: float | None
    alpha: float | None  # the coefficient of the policy's term
    beta: float


@dataclass(frozen=True)
class Source:
    """A reference policy, the embedded one or another that is trained first."""

    name: str
    width: int | None = None  # of a model that is trained first; none: the embedded one
    layers: int | None = None


TINY = Source("tiny")


@dataclass(frozen=True)
class Process:
    """Who labels the pairs, and how long and how fast a policy is trained on them."""

    name: str
    by: str  # verdict or population, of data.labels
    labels: tuple[str, ...]  # flags of data.labels
    train: tuple[str, ...]  # flags of train.py
    learning_rate: float  # what a rate of 1 is
    chosen_by: str  # the measure on held-out problems or pairs that chooses a learning rate
    seconds: float  # of a training, on one core
    source: Source = TINY
    judge: str | None = None  # the reward model that orders the pairs learnt from this `by`


@dataclass(frozen=True)
class Control:
    """Completions of a trained policy, drawn otherwise than at temperature 1."""

    family: str
    setting: str
    of: str  # the setting of spl whose policy is drawn from
    flags: tuple[str, ...] = ()  # of sample.py
    tau: float | None = None  # of eval.resample, where it is resampled


@dataclass(frozen=True)
class Grid:
    """Methods and controls on the pairs of one process."""

    process: Process
    methods: tuple[Method, ...]
    controls: tuple[Control, ...] = ()
    rates: tuple[float, ...] = RATES
    seeds: int = 5
    n: int = 128  # completions of a test problem
    graded: bool = True  # 50 easy, 50 medium and 50 hard problems; else 600 as they come
    search: bool = False  # further tau are chosen by the entropy that those before have reached


@dataclass(frozen=True)
class Plan:
    name: str
    about: str
    grids: tuple[Grid, ...]


# ------------------------------------------------------------------------------------------------
# methods and controls


def spl(tau: float, beta: float = BETA) -> Method:
    """SPL at alpha = tau * beta: DPO at tau = 1, and H-DPO with its alpha = tau."""
    alpha = round(tau * beta, 9)
    setting = f"tau {tau:g}" + ("" if beta == BETA else f", beta {beta:g}")
    flags = ("--objective", "spl", "--alpha", f"{alpha:g}", "--beta", f"{beta:g}")
    return Method("spl", setting, flags, tau, alpha, beta)


def dpo(beta: float) -> Method:
    """DPO with another beta: as SPL on the policy's term, and otherwise on the reference's."""
    flags = ("--objective", "dpo", "--beta", f"{beta:g}")
    return Method("dpo with beta'", f"beta' {beta:g}", flags, None, beta, beta)


def f_dpo(divergence: str, *more: str) -> Method:
    flags = ("--objective", "f_dpo", "--divergence", divergence, *more, "--beta", f"{BETA:g}")
    setting = " ".join((divergence, *more[1:]))
    return Method("f-dpo", setting, flags, None, None, BETA)


def drawn(family: str, letter: str, flag: str, values: Sequence[float]) -> tuple[Control, ...]:
    return tuple(
        Control(f"dpo, {family}", f"{letter} {value:g}", "tau 1", (flag, f"{value:g}"))
        for value in values
    )


def resampled(taus: Sequence[float]) -> tuple[Control, ...]:
    return tuple(Control("dpo, resampled", f"tau {tau:g}", "tau 1", tau=tau) for tau in taus)


def process(name: str, by: str, train: Sequence[str] = (), **changes) -> Process:
    """One of the two processes, with other flags of train.py, or other fields."""
    base = {"verdict": VERDICT, "population": POPULATION}[by]
    flags = dict(zip(base.train[::2], base.train[1::2], strict=True))
    flags |= dict(zip(train[::2], train[1::2], strict=True))
    words = tuple(word for flag in flags.items() for word in flag)
    return replace(base, name=name, train=words, **changes)


def with_smoothing(objective: str, noise: float) -> Method:
    """Conservative or robust DPO, told the share of flipped labels."""
    family = {"dpo": "conservative dpo", "robust": "robust dpo"}[objective]
    flags = ("--objective", objective, "--beta", f"{BETA:g}", "--label_smoothing", f"{noise:g}")
    return Method(family, f"smoothing {noise:g}", flags, None, None, BETA)


def at_temperatures(taus: Sequence[float], values: Sequence[float]) -> tuple[Control, ...]:
    return tuple(
        Control(
            "spl, token temperature",
            f"tau {tau:g}, t {value:g}",
            f"tau {tau:g}",
            ("--temperature", f"{value:g}"),
        )
        for tau in taus
        for value in values
    )


VERDICT = Process(
    "verdict",
    "verdict",
    ("--pairs", "3"),
    ("--batch_size", "16", "--eval_every", "50"),
    2e-4,  # in a trial, 1e-4 and 3e-4 gave DPO the same pass@1, and entropies of 6.2 and 5.0
    "validation:pass@1",
    60,
)
POPULATION = Process(
    "population",
    "population",
    ("--pairs", "3", "--opinions", "data/tiny/opinions.jsonl"),
    ("--batch_size", "32", "--epochs", "2", "--eval_every", "70"),
    1e-3,
    "eval/loss",
    150,
)
SMALL = tuple(map(spl, (0.8, 1.0, 2.0)))
SOME = (0.5, 0.8, 1.0, 1.2, 2.0, 4.0)
HEATED = (0.8, 1.0, 1.2, 2.0)
SMALLER = Source("width 64", 64, 2)
LONG = ("--max_steps", "10000", "--batch_size", "8", "--eval_every", "500", "--save_every", "1000")
F_DPO = (
    f_dpo("forward_kl"),
    f_dpo("jensen_shannon"),
    f_dpo("alpha", "--divergence_order", "0.5"),
)
PLANS = {
    plan.name: plan
    for plan in (
        Plan(
            "quick",
            "tau on both sides of 1, one seed",
            (
                Grid(VERDICT, SMALL, rates=(1.0,), seeds=1, n=32),
                Grid(POPULATION, SMALL, rates=(1.0,), seeds=1, n=32),
            ),
        ),
        Plan(
            "full",
            "both papers' grid of tau, other beta, and every control",
            (
                Grid(
                    VERDICT,
                    (
                        *map(spl, TAUS),
                        *(spl(tau, beta) for beta in (0.01, 0.03, 0.3) for tau in (1.0, 1.2)),
                        *(dpo(round(tau * BETA, 9)) for tau in (0.5, 0.8, 1.2, 2.0, 4.0)),
                        *F_DPO,
                    ),
                    (
                        *drawn(
                            "token temperature", "t", "--temperature", (0.8, 1.1, 1.2, 1.3, 1.5)
                        ),
                        *drawn("top-p", "p", "--top_p", (0.9, 0.95)),
                        *drawn("min-p", "m", "--min_p", (0.05, 0.1)),
                        Control(
                            "dpo, min-p",
                            "m 0.1, t 1.5",
                            "tau 1",
                            ("--min_p", "0.1", "--temperature", "1.5"),
                        ),
                        *resampled((0.8, 1.2, 2.0)),
                    ),
                ),
                Grid(
                    POPULATION,
                    (*map(spl, TAUS), *map(dpo, (0.05, 0.2, 0.4)), *F_DPO),
                    resampled((0.8, 1.2, 2.0)),
                    n=32,
                ),
            ),
        ),
        Plan(
            "temperature",
            "each tau sampled at token temperatures from 0.1 to 2",
            (
                Grid(  # at 1 as well, where the policies are tested: claims compare like rows
                    VERDICT,
                    tuple(map(spl, HEATED)),
                    at_temperatures(HEATED, (0.1, 0.4, 0.7, 0.85, 1.0, 1.15, 1.3, 1.6, 2.0)),
                    rates=(1.0,),
                    n=32,
                ),
            ),
        ),
        Plan(
            "noise",
            "flipped labels against labels that a divided population gives",
            tuple(
                Grid(
                    process(f"{by}, {noise:g} flipped", by, ("--label_noise", f"{noise:g}")),
                    (*SMALL, *(with_smoothing(name, noise) for name in ("dpo", "robust"))),
                    rates=(1.0,),
                    seeds=3,
                    n=32,
                )
                for by in ("verdict", "population")
                for noise in (0.1, 0.3)
            )
            + tuple(
                Grid(
                    process(
                        f"population, scale {scale:g}",
                        "population",
                        labels=(*POPULATION.labels, "--scale", f"{scale:g}"),
                    ),
                    SMALL,
                    rates=(1.0,),
                    seeds=3,
                    n=32,
                )
                for scale in (0.5, 1.0, 2.0, 4.0)
            ),
        ),
        Plan(
            "reward_swap",
            "one set of pairs, labelled by reward models that learnt from others",
            tuple(
                Grid(one, SMALL, rates=(1.0,), seeds=3, n=32)
                for one in (
                    POPULATION,
                    process("population, by verdict's model", "population", judge="verdict"),
                    process("population, by population's model", "population", judge="population"),
                )
            ),
        ),
        Plan(
            "long",
            "10,000 steps",
            tuple(
                Grid(
                    process(f"{by}, long", by, LONG, seconds=900),
                    SMALL,
                    rates=(1.0,),
                    seeds=1,
                )
                for by in ("verdict", "population")
            ),
        ),
        Plan(
            "size",
            "a smaller model beside the embedded one",
            tuple(
                Grid(
                    process(f"verdict, {source.name}", "verdict", source=source),
                    tuple(map(spl, SOME)),
                    rates=(1.0,),
                    seeds=3,
                    n=64,
                )
                for source in (TINY, SMALLER)
            ),
        ),
        Plan(
            "difficulty",
            "600 problems as they come, by the reference's pass rate",
            (
                Grid(
                    VERDICT,
                    tuple(map(spl, SOME)),
                    rates=(1.0,),
                    seeds=3,
                    n=32,
                    graded=False,
                ),
            ),
        ),
        Plan(
            "auto_tau",
            "a search for the tau that keeps the reference's entropy on held-out problems",
            (
                Grid(VERDICT, tuple(map(spl, SOME)), rates=(1.0,), seeds=3, n=64),
                Grid(
                    process("verdict, search", "verdict"),
                    (spl(1.0),),
                    rates=(1.0,),
                    seeds=3,
                    n=64,
                    search=True,
                ),
            ),
        ),
    )
}
