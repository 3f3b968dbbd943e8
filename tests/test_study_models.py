"""The plans on a real checkpoint: the papers' numbers, and a source for each setting.

python -m pytest tests/test_study_models.py
"""

import pytest

from data.pairs import length_limits
from eval.study_models import MODEL_PLANS
from model.config import parse_config
from model.flags import check_flags
from model.lora import TARGETS
from train import TrainConfig


def recipe(name: str) -> TrainConfig:
    """What train.py takes from a plan, its defaults included: the recipe leans on some of them."""
    plan = MODEL_PLANS[name]
    flags = [*plan.methods[0].flags, *plan.train, "--learning_rate", str(plan.learning_rate)]
    config = parse_config(TrainConfig, flags)
    check_flags(config)
    return config


@pytest.mark.parametrize(
    ("name", "taus", "beta"),
    [
        ("small", (0.8, 1, 1.5, 2), 0.1),
        ("spl_chat", (1, 1.1, 1.2, 1.3, 1.5, 2, 4, 11), 0.1),
        ("spl_maths", (1, 1.1, 1.2), 0.1),
        ("h_dpo", (0.8, 0.9, 0.95, 1, 1.1, 1.2), 0.01),
    ],
)
def test_the_papers_grids(name, taus, beta) -> None:
    methods = MODEL_PLANS[name].methods
    assert tuple(method.tau for method in methods) == taus
    assert {method.beta for method in methods} == {beta}
    assert all(method.alpha == pytest.approx(method.tau * beta) for method in methods)


def test_spl_chat_is_the_papers() -> None:
    plan, config = MODEL_PLANS["spl_chat"], recipe("spl_chat")
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (16, 16, 0)
    assert (config.max_steps, config.batch_size, plan.pairs) == (5000, 8, 5000 * 8)
    assert (plan.prompts, plan.n) == (500, 16)
    heated = [c.flags[1] for c in plan.controls if c.family == "dpo, token temperature"]
    assert heated == ["1.1", "1.2", "1.3", "1.4", "1.5"]
    assert {control.of for control in plan.controls} == {"tau 1"}


def test_spl_maths_is_the_papers() -> None:
    plan, config = MODEL_PLANS["spl_maths"], recipe("spl_maths")
    assert (config.lora_rank, config.lora_alpha, config.learning_rate) == (64, 64, 1e-5)
    assert config.max_length == 1024 and plan.rates == (1.0,)
    assert set(plan.benchmarks) == {"gsm8k", "math_problems", "mmlu", "truthfulqa"}
    for name in ("gsm8k", "math_problems"):
        assert plan.benchmarks[name].flags == ("--n", "128", "--limit", "200")
    assert [name for name, one in plan.benchmarks.items() if one.graded] == ["gsm8k"]


def test_gaps_are_filled_from_one_recipe() -> None:
    """Zephyr's: seven linear layers, 1024 tokens, a prompt 512, cosine; its rate for adapters."""
    for name in ("spl_chat", "spl_maths", "h_dpo"):
        config = recipe(name)
        assert config.lora_targets == TARGETS and len(TARGETS) == 7
        limits = config.max_length, config.max_prompt_length, 32768
        assert length_limits(*limits) == (1024, 512)
        assert config.schedule == "cosine"
    for name in ("spl_maths", "h_dpo"):  # a tenth of an epoch of 60,000 pairs, 16 a step
        assert recipe(name).warmup_steps == 60000 // 16 // 10 == MODEL_PLANS[name].pairs // 160
    for name in ("spl_chat", "h_dpo"):
        assert MODEL_PLANS[name].learning_rate == 5e-6
        assert MODEL_PLANS[name].rates == (1 / 3, 1.0, 3.0)


@pytest.mark.parametrize("plan", MODEL_PLANS.values(), ids=lambda plan: plan.name)
def test_each_setting_has_its_source(plan) -> None:
    assert all(text.startswith(("paper: ", "gap: ")) for text in plan.sources.values())
    settings = {word for key in plan.sources for word in key.split(", ")}
    needed = {"tau", "beta", "adapter", "learning rate", "lengths", "seeds", "prompts", "embedding"}
    needed |= {"benchmarks"} if plan.benchmarks else set()
    needed |= {"controls"} if plan.controls else set()
    needed |= {"reward"} if plan.reward else set()
    needed |= {"difficulty"} if any(one.graded for one in plan.benchmarks.values()) else set()
    assert needed <= settings, needed - settings


@pytest.mark.parametrize("plan", MODEL_PLANS.values(), ids=lambda plan: plan.name)
def test_a_run_is_evaluated_as_often_as_is_expected(plan) -> None:
    """Before the first step, every --eval_every, and after the last."""
    config = recipe(plan.name)
    steps = config.max_steps or plan.pairs // config.batch_size
    assert steps % config.eval_every == 0 and plan.evaluations == steps // config.eval_every + 1
    assert config.warmup_steps == steps // 10


@pytest.mark.parametrize("plan", MODEL_PLANS.values(), ids=lambda plan: plan.name)
def test_a_machine_that_is_lost_takes_little_of_a_training_with_it(plan) -> None:
    config = recipe(plan.name)
    assert config.save_every == config.eval_every > 0
    if plan.reward:
        reward = parse_config(TrainConfig, [*plan.reward.train])
        assert 0 < reward.save_every <= plan.pairs // reward.batch_size // 10
