"""Plans of the study on a real checkpoint: both papers' recipes, and one that a CPU can run.

    small       four tau and two seeds, for a model of a hundred million parameters
    spl_chat    SPL's study of chat: diversity of answers, against token temperature and the rest
    spl_maths   SPL's study of many tries (GSM8K and MATH, 128 completions of a problem) and of
                calibration (MMLU and TruthfulQA)
    h_dpo       H-DPO's study of accuracy: GSM8K, HumanEval, MMLU-Pro, IFEval

`sources` says of each setting whether it comes from a paper or fills a gap. The papers' full texts
were not at hand: "paper" is what their abstracts, quotations, reviews and notes on them say. Each
cell of a plan runs on one GPU, or on the cores of a CPU. eval/study_models_grid.py makes the cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from eval.study_plans import RATES, Control, Method, drawn, spl


@dataclass(frozen=True)
class Benchmark:
    """`python -m eval.NAME` on files of the user's."""

    flags: tuple[str, ...]
    drawn: int = 0  # tokens of all completions, about
    read: int = 0  # of all questions that nothing is drawn for: no decoding makes them other ones
    needs: tuple[str, ...] = ("data",)  # flags that name a file or a folder
    graded: bool = False  # problems are easy, medium or hard by completions of the reference


@dataclass(frozen=True)
class Reward:
    """A reward model, trained on the pairs of the study, that scores every policy's completions."""

    train: tuple[str, ...]  # flags of train.py
    learning_rate: float


@dataclass(frozen=True)
class ModelPlan:
    name: str
    about: str
    methods: tuple[Method, ...]
    pairs: int  # to train on, at most
    eval_pairs: int  # held out, at most
    pair_tokens: int  # of a prompt and its two completions, about
    train: tuple[str, ...]  # flags of train.py
    evaluations: int  # of the held-out pairs in a run, about
    learning_rate: float  # what a rate of 1 is
    prompts: int  # held out, and completed
    n: int  # completions of each
    reply_tokens: int  # of a completion, about
    sampling: tuple[str, ...]  # flags of sample.py
    sources: Mapping[str, str]  # setting -> "paper: ..." or "gap: ..."
    rates: tuple[float, ...] = (1.0,)
    seeds: int = 5
    controls: tuple[Control, ...] = ()
    benchmarks: Mapping[str, Benchmark] = field(default_factory=dict)
    reward: Reward | None = None


ENCODER = "mean last hidden states of the checkpoint itself"
LENGTHS = "a prompt 512 where it is cut, as in Zephyr's recipe"
DROPOUT = (
    "on all seven linear layers; without dropout (0.05), since policy and reference have to differ "
    "by the adapter alone"
)
CHOSEN_RATE = (
    "gap: 5e-6, that of Zephyr's recipe with adapters, a third of it and three times of it; the "
    "least held-out loss chooses"
)
ULTRAFEEDBACK = {  # both plans on it
    "pairs": 60000,
    "eval_pairs": 500,
    "pair_tokens": 730,
    "evaluations": 11,
    "prompts": 100,
    "n": 16,
    "reply_tokens": 300,
    "sampling": ("--max_new_tokens", "512"),
}
ONE_EPOCH = ("--batch_size", "16", "--warmup_steps", "375", "--eval_every", "375", "--save_every",
             "375")  # fmt: skip
ULTRAFEEDBACK_SOURCES = {
    "data": "paper: UltraFeedback; gap: its binarized pairs, at most 60,000",
    "steps": "gap: one epoch, 16 pairs a step, cosine, warm-up over a tenth of the steps, as in "
    "Zephyr's recipe on one device",
    "seeds": "gap: 5",
    "prompts": "gap: 100 held-out prompts, 16 completions of each, 512 tokens at most",
    "embedding": f"gap: {ENCODER}",
}
MODEL_PLANS = {
    plan.name: plan
    for plan in (
        ModelPlan(
            "small",
            "tau on both sides of 1, on a real checkpoint that a CPU can train",
            tuple(map(spl, (0.8, 1.0, 1.5, 2.0))),
            pairs=480,
            eval_pairs=40,
            pair_tokens=240,
            train=("--batch_size", "8", "--max_length", "192", "--max_prompt_length", "96",
                   "--warmup_steps", "6", "--eval_every", "20", "--save_every", "20"),
            evaluations=4,
            learning_rate=1e-3,
            prompts=50,
            n=8,
            reply_tokens=70,
            sampling=("--max_new_tokens", "96"),
            seeds=2,
            sources={
                "tau, beta": "paper: four of both papers' alpha / beta, at SPL's beta of 0.1",
                "pairs, lengths": "gap: 480 pairs of at most 192 tokens, so that a cell takes "
                "minutes",
                "adapter": "gap: LoRA of rank 16 and alpha 16 on all seven linear layers",
                "learning rate": "gap: 1e-3 over 60 steps of 8 pairs, warm-up 6, cosine",
                "seeds": "gap: 2",
                "prompts": "gap: 50 held-out prompts, 8 completions of each, 96 tokens at most",
                "embedding": f"gap: {ENCODER}",
            },
        ),
        ModelPlan(
            "spl_chat",
            "SPL's study of chat: tau against token temperature, top-p and min-p",
            tuple(map(spl, (1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 4.0, 11.0))),
            pairs=40000,
            eval_pairs=500,
            pair_tokens=240,
            train=("--batch_size", "8", "--max_steps", "5000", "--warmup_steps", "500",
                   "--eval_every", "500", "--save_every", "500"),
            evaluations=11,
            learning_rate=5e-6,
            rates=RATES,
            prompts=500,
            n=16,
            reply_tokens=200,
            sampling=("--max_new_tokens", "512"),
            controls=(
                *drawn("token temperature", "t", "--temperature", (1.1, 1.2, 1.3, 1.4, 1.5)),
                *drawn("top-p", "p", "--top_p", (0.9, 0.95)),
                *drawn("min-p", "m", "--min_p", (0.05, 0.1)),
            ),
            reward=Reward(
                ("--batch_size", "64", "--warmup_steps", "60", "--save_every", "60"), 1e-4
            ),
            sources={
                "model": "paper: Mistral-7B-Instruct-v0.2",
                "data": "paper: HH-RLHF",
                "tau, beta": "paper: alpha / beta from 1 to 11, at beta 0.1",
                "steps": "paper: 5,000 of 8 pairs; gap: cosine, warm-up over a tenth of them, as "
                "in Zephyr's recipe",
                "adapter": f"paper: LoRA of rank 16 and alpha 16; gap: {DROPOUT}",
                "learning rate": CHOSEN_RATE,
                "lengths": f"gap: 1024 tokens, {LENGTHS}",
                "seeds": "gap: 5",
                "prompts": "paper: 500 held-out prompts, 16 responses to each; gap: 512 tokens at "
                "most",
                "controls": "paper: DPO at token temperatures from 1 to 1.5, top-p and min-p; "
                "gap: the values of p and m; top-k is left out",
                "reward": "paper: the mean reward of a model trained on HH-RLHF; gap: on the pairs "
                "of the study, once, from the same checkpoint, LoRA of rank 16, 1e-4, 64 pairs a "
                "step. It has seen the policies' labels: a judge (eval.win_rate) has not",
                "embedding": f"gap: {ENCODER}, for Sentence-BERT or OpenAI's",
            },
        ),
        ModelPlan(
            "spl_maths",
            "SPL's study of many tries, GSM8K and MATH, and of calibration, MMLU and TruthfulQA",
            tuple(map(spl, (1.0, 1.1, 1.2))),
            **ULTRAFEEDBACK,
            train=(*ONE_EPOCH, "--lora_rank", "64", "--lora_alpha", "64"),
            learning_rate=1e-5,
            controls=drawn("token temperature", "t", "--temperature", (1.1, 1.2)),
            benchmarks={
                "gsm8k": Benchmark(("--n", "128", "--limit", "200"), 200 * 128 * 200, graded=True),
                "math_problems": Benchmark(("--n", "128", "--limit", "200"), 200 * 128 * 400),
                "mmlu": Benchmark(("--prompt_style", "chat"), read=14042 * 700,
                                  needs=("data", "dev")),
                "truthfulqa": Benchmark(("--prompt_style", "chat"), read=790 * 15 * 60),
            },
            sources={
                **ULTRAFEEDBACK_SOURCES,
                "model": "paper: Mistral-7B after SFT on UltraChat, mistral-7b-sft-beta",
                "tau, beta": "paper: alpha / beta 1, 1.1 and 1.2, at beta 0.1",
                "adapter": f"paper: LoRA of rank 64 and alpha 64; gap: {DROPOUT}",
                "learning rate": "paper: 1e-5",
                "lengths": f"paper: 1024 tokens; gap: {LENGTHS}",
                "benchmarks": "paper: 128 completions of 200 problems; gap: the first 200, asked "
                "in a chat without exemplars",
                "difficulty": "paper: of GSM8K by the first right one of 128 completions, at most "
                "4, 64, more, of MATH by level; gap: completions of the reference, not of "
                "Mistral-7B-Instruct, whose split is taken as gsm8k.split",
                "calibration": "paper: letters of MMLU and TruthfulQA in a chat, ECE and Brier; "
                "gap: all questions, MMLU's with five exemplars, 15 bins, mc1's answers. "
                "UltraFeedback's prompts hold all of TruthfulQA's questions",
                "controls": "paper: DPO at token temperatures 1.1 and 1.2",
            },
        ),
        ModelPlan(
            "h_dpo",
            "H-DPO's study of accuracy: GSM8K, HumanEval, MMLU-Pro, IFEval",
            tuple(spl(tau, 0.01) for tau in (0.8, 0.9, 0.95, 1.0, 1.1, 1.2)),
            **ULTRAFEEDBACK,
            train=ONE_EPOCH,
            learning_rate=5e-6,
            rates=RATES,
            benchmarks={
                "gsm8k": Benchmark(("--n", "16"), 1319 * 16 * 200),
                "humaneval": Benchmark(  # its last flag is the user's, whom the study asks first
                    ("--n", "16", "--temperature", "1", "--allow_code_execution", "true"),
                    164 * 16 * 200,
                ),
                "mmlu_pro": Benchmark((), 12032 * 250, needs=("data", "validation")),
                "ifeval": Benchmark((), 541 * 400),
            },
            sources={
                **ULTRAFEEDBACK_SOURCES,
                "model": "paper: Zephyr-7B; gap: from its SFT checkpoint, mistral-7b-sft-beta",
                "tau": "paper: H-DPO's alpha 0.8, 0.9, 0.95, 1, 1.1 and 1.2",
                "beta": "gap: 0.01, as in Zephyr's recipe",
                "adapter": f"gap: LoRA of rank 16 and alpha 16, as in Zephyr's recipe with "
                f"adapters, {DROPOUT}; it is not known whether all weights were trained",
                "learning rate": CHOSEN_RATE,
                "lengths": f"gap: 1024 tokens, {LENGTHS}",
                "benchmarks": "paper: these four; gap: 16 completions at temperature 1 for GSM8K "
                "and HumanEval, one greedy for the others",
            },
        ),
    )
}  # fmt: skip
