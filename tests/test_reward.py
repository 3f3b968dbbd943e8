"""Reward models: against transformers, PEFT and trl, in training, and in eval.reward.

pytest tests/test_reward.py
"""

import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import peft
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from trl import RewardConfig as TrlConfig
from trl import RewardTrainer

import train
from data.chat import detect_chat_format, encode_completion, encode_prompt
from data.packing import pack_pairs, step_indices
from data.pairs import TokenPair, read_pairs
from data.tokenizer import load_tokenizer
from eval import reward
from eval.metrics import weighted_mean, wilson_interval
from model.adapter import load_policy, save_adapter
from model.architecture import read_model_config
from model.checkpoint import load_model, save_model
from model.flags import check_flags
from model.logbook import read_records
from model.lora import add_lora
from model.plan import plan_run
from model.reward import completion_rewards, load_reward_model
from tests.conftest import ROOT
from tests.test_lora import scatter
from tests.test_plan import allocated, planned
from tests.test_train import pairs_of, run, settings, trained
from tests.test_transformer import BASE, LLAMA3, save_witness

TINY = ROOT / "data" / "tiny"
SOME = str(TINY / "eval.jsonl")  # a file that is there
LAYOUTS = {
    "llama": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "llama3": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "attention_bias": True},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 7},
}


def save_reward_witness(folder: Path, options: dict, mistral: bool = False):
    """A random model of transformers' for sequence classification with one label."""
    torch.manual_seed(0)
    name = "Mistral" if mistral else "Llama"
    config = getattr(transformers, f"{name}Config")(**{**BASE, **options, "num_labels": 1})
    model_class = getattr(transformers, f"{name}ForSequenceClassification")
    witness = model_class._from_config(config, attn_implementation="eager").eval()
    witness.save_pretrained(folder)
    return witness


@pytest.fixture
def folder(tmp_path) -> Path:
    """A language model and a reward model of one architecture, in folders of these names."""
    save_witness(tmp_path / "model", {"num_key_value_heads": 2, "initializer_range": 0.1})
    save_reward_witness(tmp_path / "reward", {"num_key_value_heads": 2})
    return tmp_path


def load_reward(folder: Path, adapter: Path | None = None, dtype=torch.float32):
    return load_reward_model(folder, adapter, dtype, "cpu")


def last_scores(witness, pairs: list[TokenPair]) -> torch.Tensor:
    """transformers' scores of each completion alone behind its prompt: (2B,), chosen first."""
    rows = [(p.prompt_ids, p.chosen_ids) for p in pairs]
    rows += [(p.prompt_ids, p.rejected_ids) for p in pairs]
    ids = [torch.from_numpy(np.concatenate(row).astype(np.int64))[None] for row in rows]
    with torch.no_grad():
        return torch.cat([witness(row).logits[:, 0] for row in ids])


# ------------------------------------------------------------------------------------------------
# scores and checkpoints


@pytest.mark.parametrize("name", LAYOUTS)
def test_rewards_are_the_scores_of_transformers(name, tmp_path):
    """In a packed batch of pairs, in one of a prompt's completions, and row by row."""
    witness = save_reward_witness(tmp_path, LAYOUTS[name], mistral=name == "mistral")
    model, pairs = load_reward(tmp_path), pairs_of(6)
    expected = last_scores(witness, pairs)
    with torch.no_grad():
        rewards = model(batch=pack_pairs(pairs, list(range(6))))
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1 and rewards.dtype == torch.float32
    for i, pair in enumerate(pairs):
        both = [ids.tolist() for ids in (pair.chosen_ids, pair.rejected_ids)]
        both = completion_rewards(model, pair.prompt_ids.tolist(), both)
        torch.testing.assert_close(torch.tensor(both), expected[[i, i + 6]], rtol=0, atol=1e-5)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert model(ids).shape == (1, 40)
        torch.testing.assert_close(model(ids)[:, -1], witness(ids).logits[:, 0], rtol=0, atol=1e-5)


def test_many_completions_in_several_forwards(folder, monkeypatch):
    """Up to 4096 tokens in one; a completion without a token is judged at the prompt's end."""
    monkeypatch.setattr("model.score.PACKED_TOKENS", 64)
    model, rng = load_reward(folder / "reward"), np.random.default_rng(3)
    prompt = rng.integers(97, size=11).tolist()
    completions = [rng.integers(97, size=n).tolist() for n in (5, 1, 0, 30, 22, 80, 1)]
    rewards = completion_rewards(model, prompt, completions)
    for completion, found in zip(completions, rewards, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([[*prompt, *completion]]))[0, -1].item()
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_transformers_reads_what_we_write(name, tmp_path):
    save_reward_witness(tmp_path, LAYOUTS[name], mistral=name == "mistral")
    model, pairs = load_reward(tmp_path), pairs_of(4)
    save_model(model, tmp_path / "out", [], bos_token_id=1, eos_token_id=2)
    theirs, found = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert theirs.config.num_labels == 1
    with torch.no_grad():
        ours = model(batch=pack_pairs(pairs, list(range(4))))
    torch.testing.assert_close(last_scores(theirs.eval(), pairs), ours, rtol=0, atol=1e-5)
    again = load_reward(tmp_path / "out")
    assert again.config == model.config
    assert torch.equal(again.score.weight, model.score.weight)


def test_padding_with_the_last_token_moves_the_reward_of_transformers(folder):
    """What the head of model/reward.py says: their last token is the last that is not padding."""
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    model, ids = load_reward(folder / "reward"), [5, 6, 7, 8]
    for padding, row in ((9, [*ids, 9, 9]), (8, ids)):
        theirs.config.pad_token_id = padding
        with torch.no_grad():
            score = theirs.eval()(torch.tensor([row])).logits.item()
        kept = [id for id in row if id != padding]
        assert completion_rewards(model, kept[:2], [kept[2:]]) == pytest.approx([score], abs=1e-5)


def test_heads_and_folders_that_do_not_go_together_are_refused(folder):
    with pytest.raises(ValueError, match="expected a language model, got a reward model, which"):
        load_model(folder / "reward")
    with pytest.raises(
        ValueError, match="is a language model without a reward head; pass the --rew"
    ):
        load_reward(folder / "model")
    path = folder / "reward" / "config.json"
    fields = json.loads(path.read_text())
    for labels, got in (({"0": "a", "1": "b"}, 2), (None, 2)):
        path.write_text(json.dumps({**fields, "id2label": labels}))
        with pytest.raises(ValueError, match=f"expects one label in id2label, got {got}"):
            read_model_config(path)
    path.write_text(json.dumps(fields))
    tensors = load_file(folder / "reward" / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "reward" / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors are missing: score.weight"):
        load_reward(folder / "reward")


@pytest.mark.parametrize("base", ["model", "reward"])
def test_peft_loads_our_adapter_and_ours_loads_theirs(base, folder):
    """On a language model as on a reward model, whose own head the adapter's replaces."""
    model = load_policy(folder / base, None, torch.float32, "cpu", reward=True)
    assert bool(model.score.weight.any()) == (base == "reward")  # a new head is zero
    add_lora(model, rank=5, alpha=8.0)
    scatter(model)
    model.score.weight.data.copy_(torch.randn(1, 48, generator=torch.Generator().manual_seed(1)))
    save_adapter(model, folder / "adapter", str(folder / base))
    witness = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / base, num_labels=1
    )
    theirs = peft.PeftModel.from_pretrained(witness, folder / "adapter").eval()
    pairs = pairs_of(4)
    batch = pack_pairs(pairs, list(range(4)))
    with torch.no_grad():
        ours = model(batch=batch)
        torch.testing.assert_close(last_scores(theirs, pairs), ours, rtol=1e-4, atol=1e-4)
        theirs.save_pretrained(folder / "theirs")
        assert "classifier" in json.loads(
            (folder / "theirs" / "adapter_config.json").read_text()
        )["modules_to_save"]  # fmt: skip
        for name in ("adapter", "theirs"):
            again = load_reward(folder / base, folder / name)
            torch.testing.assert_close(again(batch=batch), ours, rtol=1e-4, atol=1e-5)
        half = load_reward(folder / base, folder / "adapter", torch.bfloat16)
        assert half.score.weight.dtype == half(batch=batch).dtype == torch.float32
        torch.testing.assert_close(half(batch=batch), ours, rtol=0.1, atol=0.1)


def test_adapters_of_reward_models_are_for_reward_models(folder):
    model = load_policy(folder / "model", None, torch.float32, "cpu", reward=True)
    add_lora(model, rank=2, alpha=2.0)
    save_adapter(model, folder / "adapter", "base")
    with pytest.raises(ValueError, match="the adapter of a reward model; expected a language mod"):
        load_policy(folder / "model", folder / "adapter", torch.float32, "cpu")
    path = folder / "adapter" / "adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "modules_to_save": ["score", ["lm_head"]]}))
    with pytest.raises(ValueError, match=r"modules_to_save=.* is not implemented; expected score"):
        load_reward(folder / "model", folder / "adapter")
    path.write_text(json.dumps({**fields, "modules_to_save": None}))
    with pytest.raises(ValueError, match="is a language model without a reward head"):
        load_reward(folder / "model", folder / "adapter")
    with pytest.raises(ValueError, match=r"unexpected or repeated tensor .*score.weight"):
        load_reward(folder / "reward", folder / "adapter")


# ------------------------------------------------------------------------------------------------
# training


def reward_settings(folder: Path, **changes) -> train.TrainConfig:
    return settings(folder, objective="reward", **changes)


def test_step_zero_is_log_2_and_what_is_logged(folder):
    _, records = run(reward_settings(folder, batch_size=10), pairs_of(), pairs_of())
    assert records[0]["eval/loss"] == records[1]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert records[0]["eval/rewards/margins"] == records[0]["eval/rewards/accuracies"] == 0
    names = {"chosen", "rejected", "margins", "accuracies"}
    assert set(records[0]) == {
        "step", "eval/loss", "eval/lengths/chosen", "eval/lengths/rejected",
        *(f"eval/rewards/{name}" for name in names),
    }  # fmt: skip
    for name in ("chosen", "rejected"):
        lengths = [len(getattr(pair, f"{name}_ids")) for pair in pairs_of()]
        assert records[0][f"eval/lengths/{name}"] == pytest.approx(sum(lengths) / len(lengths))
    assert records[-1]["eval/loss"] < records[0]["eval/loss"]


def test_the_first_step_from_a_reward_model_by_hand(folder):
    """Its loss and its margins are made of the scores of transformers; smoothed, of both labels."""
    pairs = pairs_of()
    witness = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    chosen, rejected = last_scores(witness.eval(), pairs).double().chunk(2)
    changes = {"model": str(folder / "reward"), "batch_size": 10, "max_steps": 1}
    changes |= {"label_smoothing": 0.2}
    _, (record,) = run(reward_settings(folder, **changes), pairs)
    right, wrong = (torch.nn.functional.softplus(x) for x in (rejected - chosen, chosen - rejected))
    assert record["loss"] == pytest.approx((0.8 * right + 0.2 * wrong).mean().item(), rel=1e-5)
    assert record["rewards/chosen"] == pytest.approx(chosen.mean().item(), abs=1e-5)
    assert record["rewards/margins"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)
    assert record["rewards/accuracies"] == (chosen > rejected).double().mean().item()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers' of itself
def test_ten_steps_are_those_of_trl(folder):
    """trl's RewardTrainer on the same ids: every weight trained, padded with a token of its own."""
    pairs = [
        TokenPair(*(np.maximum(ids, 1) for ids in (p.prompt_ids, p.chosen_ids, p.rejected_ids)), "")
        for p in pairs_of(16)
    ]
    changes = {"model": str(folder / "reward"), "lora_rank": 0, "max_steps": 10, "save_every": 0}
    config = reward_settings(folder, **changes, learning_rate=1e-3, warmup_steps=0)
    steps = [i for step in range(10) for i in step_indices(step, 16, 4, config.seed)]
    rows = [
        {
            "chosen_ids": [*pairs[i].prompt_ids.tolist(), *pairs[i].chosen_ids.tolist()],
            "rejected_ids": [*pairs[i].prompt_ids.tolist(), *pairs[i].rejected_ids.tolist()],
        }
        for i in steps
    ]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    arguments = TrlConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=4, max_steps=10,
        learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=0, weight_decay=0.0,
        max_grad_norm=1.0, train_sampling_strategy="sequential", use_cpu=True, bf16=False,
        gradient_checkpointing=False, dataloader_pin_memory=False, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = RewardTrainer(
        transformers.AutoModelForSequenceClassification.from_pretrained(folder / "reward"),
        arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<pad>"
        ),
    )
    trainer.train()
    theirs = [record for record in trainer.state.log_history if "loss" in record]
    _, ours = run(config, pairs)
    assert len(ours) == len(theirs) == 10
    for one, two in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4), one["step"]
        assert one["rewards/margins"] == pytest.approx(two["margin"], abs=1e-3)
        assert one["rewards/accuracies"] == two["accuracy"]
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1e-4)
    assert ours[-1]["loss"] < 0.9 * ours[0]["loss"]


@pytest.mark.parametrize("rank", [4, 0])
def test_micro_batches_and_checkpointing_change_nothing(rank, folder):
    finals = []
    for budget, again in ((10_000, False), (1, True)):
        changes = {"micro_batch_tokens": budget, "activation_checkpointing": again}
        changes |= {"lora_rank": rank, "out_dir": str(folder / str(budget))}
        model, records = run(reward_settings(folder, **changes), pairs_of())
        assert model.score.weight.requires_grad and model.score.weight.any()
        finals.append((trained(model), records[-1]["loss"]))
    for name, values in finals[0][0].items():
        torch.testing.assert_close(values, finals[1][0][name], rtol=1e-3, atol=1e-4, msg=name)
    assert finals[0][1] == pytest.approx(finals[1][1], rel=1e-4)


@pytest.mark.parametrize("rank", [4, 0])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(rank, folder, monkeypatch):
    pairs = pairs_of()
    changes = {"lora_rank": rank, "lora_dropout": 0.1 if rank else 0.0, "label_smoothing": 0.1}
    whole, records = run(
        reward_settings(folder, out_dir=str(folder / "a"), **changes), pairs, pairs
    )
    add = train.StepLog.add

    def die(self, step):
        if step.number == 4:
            raise InterruptedError
        add(self, step)

    monkeypatch.setattr(train.StepLog, "add", die)
    changes["out_dir"] = str(folder / "b")
    with pytest.raises(InterruptedError):
        run(reward_settings(folder, **changes), pairs, pairs)
    monkeypatch.undo()
    resumed, again = run(reward_settings(folder, resume=True, **changes), pairs, pairs)
    assert all(torch.equal(v, trained(resumed)[name]) for name, v in trained(whole).items())
    assert [r.get("loss") for r in again] == [r.get("loss") for r in records]
    assert len(again) == 7


def test_bfloat16_trains_a_float32_head(folder):
    model = train.build_policy(reward_settings(folder), torch.bfloat16, "cpu")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.embed_tokens.weight.dtype == torch.bfloat16
    (folder / "run").mkdir()
    train.train(reward_settings(folder), model, pairs_of(), [], folder / "run", "cpu")
    assert read_records(folder / "run" / "metrics.jsonl")[-1]["loss"] < 0.7


def test_a_run_goes_on_from_an_adapter_with_its_head(folder):
    """--adapter: merged, its head taken over; what is saved is one adapter of the same base. The
    adapter of a language model brings no head."""
    first = reward_settings(folder, out_dir=str(folder / "first"))
    model, _ = run(first, pairs_of())
    train.save_policy(first, model, None, None, folder / "first")
    second = reward_settings(folder, adapter=str(folder / "first"), out_dir=str(folder / "second"))
    batch = pack_pairs(pairs_of(), list(range(10)))
    with torch.no_grad():
        before = train.build_policy(second, torch.float32, "cpu")(batch=batch)
        torch.testing.assert_close(before, model(batch=batch), rtol=1e-4, atol=1e-5)
    model, _ = run(second, pairs_of())
    train.save_policy(second, model, None, None, folder / "second")
    with torch.no_grad():
        again = load_reward(folder / "model", folder / "second")(batch=batch)
        torch.testing.assert_close(again, model(batch=batch), rtol=1e-4, atol=1e-5)
        assert (again - before).abs().max() > 1e-3
    policy, _ = run(settings(folder, out_dir=str(folder / "dpo")), pairs_of())
    train.save_policy(settings(folder), policy, None, None, folder / "dpo")
    third = reward_settings(folder, adapter=str(folder / "dpo"))
    assert not train.build_policy(third, torch.float32, "cpu").score.weight.any()


@pytest.mark.parametrize("rank", [3, 0])
@pytest.mark.parametrize("later", [False, True])
def test_memory_is_what_was_planned(rank, later):
    """To the byte, as in tests/test_plan.py; and there is no head to count."""
    config = train.TrainConfig(model=str(TINY), objective="reward", lora_rank=rank)
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(512, size=n)  # noqa: E731
    pairs = [TokenPair(draw(30), draw(40), draw(50), "made") for _ in range(8)]
    batch = pack_pairs(pairs, list(range(8)))
    plan = plan_run(train.shape_policy(config, torch.float32), batch, 1 + later, device_type="cpu")
    model = train.build_policy(config, torch.float32, "cpu")
    if later:
        model(batch=batch).sum().backward()
    assert allocated(lambda: model(batch=batch).sum().backward()) == planned(plan, later)
    assert plan.flop["head"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--beta 0.2", "--beta has no meaning for --objective reward, which has no policy and no"),
        ("--alpha 0.2", "--alpha has no meaning for --objective reward"),
        ("--sft_weight 1", "--sft_weight has no meaning for --objective reward"),
        ("--reference cached", "--reference has no meaning for --objective reward"),
    ],
)
def test_flags_of_policies_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        check_flags(
            train.parse_config(train.TrainConfig, ["--objective", "reward", *words.split()])
        )


# ------------------------------------------------------------------------------------------------
# the whole path on the embedded pairs


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory) -> Path:
    """30 steps on the embedded pairs, every weight; 300 pairs are held out."""
    out = tmp_path_factory.mktemp("reward") / "run"
    flags = ["--objective", "reward", "--lora_rank", "0", "--learning_rate", "1e-3"]
    flags += ["--max_steps", "30", "--eval_every", "0", "--out_dir", str(out)]
    flags += ["--model", str(TINY), "--data", str(TINY / "train.jsonl")]
    held_out = out.with_name("eval.jsonl")
    held_out.write_text("".join((TINY / "eval.jsonl").read_text().splitlines(True)[:300]))
    call(train.main, [*flags, "--eval_data", str(held_out), "--device", "cpu"])
    return out


def call(main, flags: list) -> None:
    argv, sys.argv = sys.argv, ["program", *map(str, flags)]
    try:
        main()
    finally:
        sys.argv = argv


def score(out: Path, model: Path, *flags) -> tuple[dict, list[dict]]:
    """eval.reward's metrics and items."""
    call(reward.main, ["--reward_model", model, "--out", out, "--device", "cpu", *flags])
    lines = (out / "items.jsonl").read_text().splitlines()
    return json.loads((out / "summary.json").read_text()), [json.loads(line) for line in lines]


def test_right_is_told_from_wrong_on_held_out_pairs(trained_run, tmp_path):
    """Better than a coin on the held-out pairs, and what train.py has logged of them."""
    held_out = trained_run.with_name("eval.jsonl")
    summary, items = score(tmp_path, trained_run / "model", "--data", held_out)
    last = read_records(trained_run / "metrics.jsonl")[-1]
    metrics = summary["metrics"]
    assert metrics["accuracy"]["low"] > 0.5 and len(items) == summary["problems"] == 300
    assert metrics["accuracy"]["value"] == pytest.approx(last["eval/rewards/accuracies"], abs=2e-3)
    assert metrics["loss"]["value"] == pytest.approx(last["eval/loss"], rel=1e-5)
    assert metrics["margin"]["value"] == pytest.approx(last["eval/rewards/margins"], rel=1e-4)
    right = [float(item["rewards"][0] > item["rewards"][1]) for item in items]
    assert wilson_interval(right)[0] == metrics["accuracy"]["low"]


def test_relabelled_pairs_are_ordered_by_reward_and_read_again(trained_run, tmp_path, capsys):
    out = tmp_path / "pairs" / "relabelled.jsonl"
    flags = ["--data", TINY / "eval.jsonl", "--limit", 50, "--relabel", out]
    summary, items = score(tmp_path / "out", trained_run / "model", *flags)
    changed = sum(item["rewards"][0] < item["rewards"][1] for item in items)
    assert (
        f"50 pairs, the order of {changed} changed; 0 ties kept theirs" in capsys.readouterr().out
    )
    assert 0 < changed < 50
    before = read_pairs(TINY / "eval.jsonl", "reward")[:50]
    for one, two, item in zip(before, read_pairs(out, "reward"), items, strict=True):
        order = (one.chosen, one.rejected)
        order = order[::-1] if item["rewards"][0] < item["rewards"][1] else order
        assert (two.prompt, two.chosen, two.rejected) == (one.prompt, *order)
    again, _ = score(tmp_path / "again", trained_run / "model", "--data", out)
    assert again["metrics"]["accuracy"]["value"] == 1
    assert summary["metrics"]["accuracy"]["value"] == pytest.approx(1 - changed / 50)


def test_equal_rewards_keep_their_order(tmp_path):
    row = reward.Row([{"role": "user", "content": "q"}], ("a", "b"), (True, True), {}, "")
    items = [{"rewards": [1.0, 1.0]}, {"rewards": [1.0, 2.0]}]
    reward.write_relabelled(tmp_path / "r.jsonl", [row, row], items)
    pairs = read_pairs(tmp_path / "r.jsonl", "reward")
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("a", "b"), ("b", "a")]
    lines = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    about = [(line["rewards"], line["changed"]) for line in lines]
    assert about == [([1.0, 1.0], False), ([2.0, 1.0], True)]


SAMPLES = [
    {"index": 1, "prompt": "2 + 2?", "completions": ["4", "four", "5"]},
    {"index": 0, "prompt": "1 + 1?", "completions": ["2", "2 or so", "3"],
     "finish_reasons": ["stop", "length", "stop"], "tokens": [2, 3, 2],
     "reference_logps": [-1.0, -4.0, -2.5]},
]  # fmt: skip


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_samples_by_hand(trained_run, tmp_path):
    """Rewards of the ids behind the texts: a cut completion has no end-of-turn token; of row 0 the
    cross-entropy is (1 + 4 + 2.5) / 3, over 7 tokens 7.5 / 7."""
    samples = write_lines(tmp_path / "samples.jsonl", SAMPLES)
    rows = [{"index": 0, "correct": [True, True, False]}, {"index": 1, "correct": [False] * 3}]
    items_file = write_lines(tmp_path / "verdicts.jsonl", rows)
    flags = ["--samples", samples, "--items", items_file]
    summary, items = score(tmp_path / "out", trained_run / "model", *flags)

    model, tokenizer = load_reward(trained_run / "model"), load_tokenizer(TINY)
    chat_format, _ = detect_chat_format(TINY, tokenizer)
    prompt = encode_prompt([{"role": "user", "content": "1 + 1?"}], chat_format, tokenizer)
    texts = [encode_completion(text, chat_format, tokenizer) for text in ("2", "2 or so", "3")]
    assert all(text[-1] == tokenizer.eos_id for text in texts)
    texts[1].pop()
    with torch.no_grad():
        expected = [model(torch.tensor([[*prompt, *text]]))[0, -1].item() for text in texts]
    assert items[0]["rewards"] == pytest.approx(expected, abs=1e-5)
    metrics = {name: row["value"] for name, row in summary["metrics"].items()}
    assert metrics["reward@1"] == pytest.approx(np.mean([item["rewards"] for item in items]))
    means = [
        np.mean([max(p) for p in itertools.combinations(item["rewards"], 2)]) for item in items
    ]
    assert metrics["reward@2"] == pytest.approx(np.mean(means))
    deviations = [np.std(item["rewards"], ddof=1) for item in items]
    assert metrics["reward_sd"] == pytest.approx(np.mean(deviations))
    assert metrics["pass@1"] == metrics["selected@1"] == pytest.approx(1 / 3)
    assert metrics["pass@2"] == 0.5 and "reward@4" not in metrics
    assert "cross_entropy" not in metrics  # row 1 has none
    summary, _ = score(tmp_path / "one", trained_run / "model", "--samples", samples, "--limit", 1)
    assert summary["metrics"]["cross_entropy"]["value"] == pytest.approx(2.5)
    assert summary["metrics"]["cross_entropy_per_token"]["value"] == pytest.approx(7.5 / 7)


def test_pairs_by_hand():
    """Margins 2, 0 and -1: a tie is no success. log(1 + e^-2), log 2, log(1 + e)."""
    metrics = reward.pair_metrics([{"rewards": r} for r in ([3.0, 1.0], [1.0, 1.0], [0.0, 1.0])])
    assert (metrics["accuracy"], metrics["margin"]) == ([1, 0, 0], [2, 0, -1])
    assert metrics["loss"] == pytest.approx([0.126928, 0.693147, 1.313262], abs=1e-6)


def test_prompts_with_other_counts_of_completions():
    """N goes up to the fewest. Of 0, 1, 2, 5 the best of two is 20 / 6 on average; 24 nats over 12
    tokens and 4 over 4 are 28 / 16 a token."""
    four = {"rewards": [0.0, 1.0, 2.0, 5.0], "tokens": [3] * 4, "reference_logps": [-6.0] * 4}
    two = {"rewards": [1.0, 3.0], "tokens": [2, 2], "reference_logps": [-1.0, -3.0]}
    values = reward.sample_metrics([four, two])
    assert values["reward@2"] == pytest.approx([20 / 6, 3]) and "reward@4" not in values
    assert values["cross_entropy"] == [6, 2]
    assert weighted_mean(values["cross_entropy_per_token"]) == 28 / 16


def test_prompts_from_a_file(trained_run, tmp_path):
    samples = write_lines(tmp_path / "samples.jsonl", SAMPLES)
    bare = [{k: v for k, v in row.items() if k != "prompt"} for row in SAMPLES]
    bare = write_lines(tmp_path / "bare.jsonl", bare)
    prompts = write_lines(tmp_path / "p.jsonl", [{"question": "1 + 1?"}, {"question": "2 + 2?"}])
    model = trained_run / "model"
    one, _ = score(tmp_path / "one", model, "--samples", samples)
    two, _ = score(tmp_path / "two", model, "--samples", bare, "--prompts", prompts)
    assert one["metrics"] == two["metrics"]
    assert one["settings"]["data_sha256"] == two["settings"]["data_sha256"]


def test_a_baseline_is_another_policy_before_the_same_judge(trained_run, tmp_path):
    """The difference is paired by prompt; another reward model has another scale."""
    model, base = trained_run / "model", tmp_path / "base"
    samples = write_lines(tmp_path / "samples.jsonl", SAMPLES)
    before, _ = score(base, model, "--samples", samples)
    others = [{**row, "completions": [text]} for row, text in zip(SAMPLES, "48", strict=True)]
    others = [{k: row[k] for k in ("index", "prompt", "completions")} for row in others]
    flags = ["--samples", write_lines(tmp_path / "others.jsonl", others), "--baseline", base]
    after, _ = score(tmp_path / "out", model, *flags)
    one, two = (summary["metrics"]["reward@1"]["value"] for summary in (before, after))
    assert after["metrics"]["reward@1 - baseline"]["value"] == pytest.approx(two - one)

    judge = tmp_path / "judge"
    shutil.copytree(model, judge)
    tensors = load_file(judge / "model.safetensors")
    save_file({**tensors, "score.weight": 2 * tensors["score.weight"]}, judge / "model.safetensors")
    with pytest.raises(ValueError, match="its rewards are those of another reward model"):
        score(tmp_path / "no", judge, *flags)
    with pytest.raises(ValueError, match="holds rows that were made otherwise"):
        score(base, judge, "--samples", samples)


def test_an_adapter_is_part_of_the_judge(trained_run, tmp_path):
    """In bfloat16 it stays beside the weights; with a product of zero it rounds as they do."""
    folder, judges = trained_run / "model", set()
    model = load_policy(folder, None, torch.float32, "cpu", reward=True)
    add_lora(model, rank=2, alpha=2.0)
    flags = ["--data", TINY / "eval.jsonl", "--limit", 2]
    _, exact = score(tmp_path / "exact", folder, *flags)
    for name in ("zero", "scattered"):
        save_adapter(model, tmp_path / name, str(folder))
        half = [*flags, "--reward_adapter", tmp_path / name, "--dtype", "bfloat16"]
        summary, items = score(tmp_path / f"of {name}", folder, *half)
        judges.add(summary["settings"]["reward_sha256"])
        if name == "zero":
            for one, two in zip(items, exact, strict=True):
                assert one["rewards"] != two["rewards"]
                assert one["rewards"] == pytest.approx(two["rewards"], abs=0.1)
        scatter(model)
    assert len(judges) == 2


def test_a_killed_evaluation_goes_on_byte_for_byte(trained_run, tmp_path):
    """A row depends on its prompt and its completions alone, whatever is scored before it."""
    flags = ["--data", TINY / "eval.jsonl", "--limit", 20]
    score(tmp_path / "whole", trained_run / "model", *flags)
    whole = (tmp_path / "whole" / "rewards.jsonl").read_bytes()
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "rewards.jsonl").write_bytes(whole[: len(whole) // 2])
    settings_file = "rewards.jsonl.settings.json"
    (torn / settings_file).write_bytes((tmp_path / "whole" / settings_file).read_bytes())
    score(torn, trained_run / "model", *flags)
    for name in ("rewards.jsonl", "items.jsonl"):
        assert (torn / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ValueError, match="holds rows that were made otherwise"):
        score(torn, trained_run / "model", *flags[:2], "--limit", 19)
    with pytest.raises(ValueError, match="holds rows that were made otherwise"):
        score(torn, trained_run / "model", "--data", TINY / "train.jsonl", "--limit", 20)


def test_rewards_that_are_no_numbers_are_named(trained_run, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(trained_run / "model", broken)
    tensors = load_file(broken / "model.safetensors")
    save_file(
        {**tensors, "score.weight": tensors["score.weight"] / 0}, broken / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"eval.jsonl:1: rewards .*; are the weights broken"):
        score(tmp_path / "out", broken, "--data", TINY / "eval.jsonl")


def test_one_reward_that_is_no_number_is_enough(tmp_path, monkeypatch):
    row = reward.Row((), ("a", "b"), (True, True), {}, "x.jsonl:1")
    monkeypatch.setattr(reward, "completion_rewards", lambda *args: [1.0, math.nan])
    with pytest.raises(ValueError, match=r"x.jsonl:1: rewards \[1.0, nan\]; are the weights brok"):
        config = reward.RewardConfig(out=str(tmp_path))
        reward.write_rewards(config, None, [row], [([1], [[2], [3]])], "weights")


def test_long_rows_are_cut_as_in_training(trained_run, tmp_path, capsys):
    """Positions 256: the front of the prompt goes first, then the end of the completion."""
    rows = [{"index": 0, "prompt": "why " * 300, "completions": ["so " * 300, "so"]}]
    samples = write_lines(tmp_path / "samples.jsonl", rows)
    _, (item,) = score(tmp_path / "out", trained_run / "model", "--samples", samples)
    assert "cut to 256 tokens: prompts of 1 rows, completions of 1 rows" in capsys.readouterr().out
    assert all(map(math.isfinite, item["rewards"]))
    with pytest.raises(ValueError, match="expected --max_prompt_length < --max_length"):
        flags = ["--samples", samples, "--max_length", 8, "--max_prompt_length", 8]
        score(tmp_path / "no", trained_run / "model", *flags)


def test_what_is_cut_of_a_row_by_hand(capsys):
    """Positions 14, 8 of them for the prompt, whose first token, BOS, stays; the longest completion
    decides, and has 6 left. What fits is whole."""
    tokenizer = load_tokenizer(TINY)
    chat_format, _ = detect_chat_format(TINY, tokenizer)
    messages = [{"role": "user", "content": "4?"}]
    rows = [
        reward.Row(messages, ("1",), (False,), {}, ""),
        reward.Row(messages, ("1", "1 + 2 + 3 + 4"), (True, True), {}, ""),
    ]
    some = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=14))
    config = reward.RewardConfig(max_length=100, max_prompt_length=8)
    whole, (prompt, (short, long)) = reward.encode_rows(config, rows, some, tokenizer, chat_format)
    asked = encode_prompt(messages, chat_format, tokenizer)
    ids = [encode_completion(text, chat_format, tokenizer) for text in rows[1].replies]
    assert whole == (asked, [ids[0][:-1]]) and len(asked) + len(ids[0]) <= 14
    assert prompt == [tokenizer.bos_id, *asked[-7:]] and len(asked) > 8
    assert short == ids[0] and long == ids[1][:6] and len(ids[1]) > 6
    said = "cut to 14 tokens: prompts of 1 rows, completions of 1 rows\n"
    assert capsys.readouterr().out == said


# ------------------------------------------------------------------------------------------------
# what the reward selects among N


@pytest.mark.parametrize("ties", [False, True])
def test_selection_chances_are_those_of_all_draws(ties):
    """Against every subset of 7, a uniform choice among its best."""
    rng = np.random.default_rng(2)
    rewards = (rng.integers(3, size=7) if ties else rng.permutation(7)).astype(float).tolist()
    for drawn in range(1, 8):
        expected = np.zeros(7)
        subsets = list(itertools.combinations(range(7), drawn))
        for subset in subsets:
            best = [i for i in subset if rewards[i] == max(rewards[j] for j in subset)]
            expected[best] += 1 / len(best) / len(subsets)
        chances = reward.selection_chances(rewards, drawn)
        assert chances == pytest.approx(expected.tolist(), abs=1e-12)
        assert sum(chances) == pytest.approx(1)


def test_best_of_n_by_hand():
    """Rewards 1, 2, 2, of which the first and the second are right; two of three are drawn.

    The draws are {1, 2}, {1, 2'}, {2, 2'}: the best has reward 2 in all of them. Selected is the
    second in the first, the third in the second, either in the last: right in (1 + 0 + 1/2) / 3.
    """
    item = {"rewards": [1.0, 2.0, 2.0], "correct": [True, True, False]}
    assert reward.best_of(item, 2, item["rewards"]) == pytest.approx(2)
    assert reward.best_of(item, 2, item["correct"]) == pytest.approx(0.5)
    assert reward.best_of(item, 3, item["correct"]) == pytest.approx(0.5)


def test_many_samples_stay_exact():
    """The best of 128 of 128 is the maximum; of 64, the order statistics sum to one."""
    rewards = np.random.default_rng(0).normal(size=128).tolist()
    assert reward.best_of({"rewards": rewards}, 128, rewards) == max(rewards)
    chances = reward.selection_chances(rewards, 64)
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    assert chances[int(np.argmax(rewards))] == 0.5  # it is drawn in half of the draws


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"out": None}, ValueError, "--out expects a folder for the results, got none"),
        ({"reward_model": None}, ValueError, "--reward_model expects a folder, got none"),
        ({"data": None}, ValueError, "either --samples or --data"),
        ({"samples": "s.jsonl"}, ValueError, "either --samples or --data"),
        ({"items": "i.jsonl"}, ValueError, "--items has no meaning without --samples"),
        ({"data": None, "samples": "s", "relabel": "r"}, ValueError, "--relabel has no meaning wi"),
        ({"data": None, "samples": "nowhere"}, FileNotFoundError, "--samples expects a file"),
        ({"reward_model": "nowhere"}, FileNotFoundError, "--reward_model expects a folder, got no"),
        ({"limit": 0}, ValueError, "--limit expects 1 or more, got 0"),
        ({"max_length": 0}, ValueError, "--max_length expects 1 or more, got 0"),
        ({"max_prompt_length": 0}, ValueError, "--max_prompt_length expects 1 or more, got 0"),
        ({"chat_format": "alpaca"}, ValueError, "--chat_format expects one of auto, zephyr"),
        ({"dtype": "int8"}, ValueError, "--dtype expects one of float32"),
        ({"shard": True}, ValueError, "--shard needs more than one rank"),
        (
            {"data": str(TINY / "eval.jsonl"), "relabel": str(TINY / "eval.jsonl")},
            ValueError,
            "--relabel .* would overwrite",
        ),
        ({"relabel": str(TINY)}, ValueError, "--relabel expects a file, got the folder"),
        *(
            ({"data": SOME, "relabel": f"out/{name}.jsonl"}, ValueError, f"overwrite out/{name}")
            for name in ("rewards", "items")
        ),
        (
            {"data": None, "samples": SOME, "items": SOME, "out": str(TINY)},
            ValueError,
            "--out .* is the folder of --items, whose results it would overwrite; pass another",
        ),
    ],
)
def test_contradictions_stop_before_anything_is_read(flags, error, message):
    fields = {"reward_model": str(TINY), "data": "p.jsonl", "out": "out", **flags}
    with pytest.raises(error, match=message):
        reward.check_config(reward.RewardConfig(**fields))
