"""train.py against trl's DPOTrainer: the same rows, model, adapter and order of the data, float32.

trl is given messages, and makes of them by its own code ids, padded batches, losses, gradients,
their clipping, the learning rates and the steps. A random model, from an adapter that is not zero,
goes through every objective that trl has; SmolLM2 goes through train.main on UltraFeedback rows.
Where the two differ, and what is done about it here:

1. ChatML writes a line break behind every turn. trl makes it the last token of a completion; ours
   ends with the end-of-turn token. `Collator` takes it off, so that both sum over the same tokens.
2. trl has one coefficient. margins = policy_coef * (pi_logratios - scale * ref_logratios) with
   scale = reference_coef / policy_coef: trl's precomputed reference logps are multiplied by scale,
   and its beta is policy_coef.
3. trl's `sigmoid` ignores label_smoothing. Its `aot` is the same loss on log ratios that it sorts
   over the batch; a batch of one pair has nothing to sort: conservative DPO.
4. trl logs rewards of sums over tokens for ipo too; ours are those in the loss, of means. For other
   divergences than the reverse KL it logs beta log u; ours are beta f'(u), as in the loss. The
   coefficient of its alpha-divergence is 1 less our order.
5. trl's warm-up begins with a step at learning rate zero, ours does not. There is none here.
"""

import gzip
import json
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

import train
from data.chat import detect_chat_format
from data.packing import pack_pairs, step_indices
from data.pairs import TokenPair
from data.tokenizer import load_tokenizer
from model.adapter import save_adapter
from model.config import to_json
from model.logbook import read_records
from model.lora import lora_layers
from model.reference import reference_logps
from model.transformer import Transformer
from tests.test_chat import CHATML
from tests.test_transformer import save_witness

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers' of itself
STEPS = 10
REAL_STEPS = 2  # of the real model
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")  # trl's columns
LOGGED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


@dataclass(frozen=True)
class Case:
    """An objective, as ours is asked for it and as trl is."""

    ours: dict  # fields of TrainConfig
    beta: float  # trl's: policy_coef
    scale: float = 1.0  # reference_coef / policy_coef
    theirs: dict = field(default_factory=dict)  # fields of DPOConfig
    step_0: float = 1e-5  # tolerance of the first step's loss and rewards


PAIR_BY_PAIR = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
CASES = {
    "dpo": Case({"objective": "dpo", "beta": 0.1}, 0.1),
    "spl": Case({"objective": "spl", "alpha": 0.02, "beta": 0.01}, 0.02, 1 / 2, step_0=1e-4),
    "h_dpo": Case({"objective": "h_dpo", "alpha": 0.9, "beta": 0.1}, 0.09, 1 / 0.9, step_0=1e-4),
    "ipo": Case({"objective": "ipo", "beta": 0.5}, 0.5, theirs={"loss_type": ["ipo"]}),
    "robust": Case(
        {"objective": "robust", "beta": 0.1, "label_smoothing": 0.2},
        0.1,
        theirs={"loss_type": ["robust"], "label_smoothing": 0.2},
    ),
    "conservative": Case(
        {"objective": "dpo", "beta": 0.1, "label_smoothing": 0.2},
        0.1,
        theirs={"loss_type": ["aot"], "label_smoothing": 0.2, **PAIR_BY_PAIR},
    ),
    "forward_kl": Case(
        {"objective": "f_dpo", "divergence": "forward_kl", "beta": 0.1},
        0.1,
        theirs={"f_divergence_type": "forward_kl"},
    ),
    "jensen_shannon": Case(
        {"objective": "f_dpo", "divergence": "jensen_shannon", "beta": 0.1},
        0.1,
        theirs={"f_divergence_type": "js_divergence"},
    ),
    "alpha_divergence": Case(
        {"objective": "f_dpo", "divergence": "alpha", "divergence_order": 0.3, "beta": 0.1},
        0.1,
        theirs={"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
}


# ------------------------------------------------------------------------------------------------
# ours


def make_config(
    case: Case, folder: Path, rows: list[dict], out: Path, **fields
) -> train.TrainConfig:
    """The rows in a file, and the run on them that ends in out / "run"."""
    data = out / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields |= {"model": str(folder), "data": (str(data),), "out_dir": str(out / "run")}
    fields |= {"max_steps": STEPS, "warmup_steps": 0, "eval_fraction": 0.0}
    fields |= {"device": "cpu", "dtype": "float32", "sample_prompts": 0}
    return train.TrainConfig(**fields, **case.ours)


def load_ours(config: train.TrainConfig, spread: float) -> tuple[Transformer, list[TokenPair]]:
    """The policy that the run starts from, its B moved from zero by noise; the pairs as it sees
    them."""
    tokenizer = load_tokenizer(config.model)
    chat_format, _ = detect_chat_format(config.model, tokenizer)
    model = train.build_policy(config, torch.float32, "cpu")
    pairs, _ = train.load_pairs(config, tokenizer, chat_format)
    generator = torch.Generator().manual_seed(5)
    for _, layer in lora_layers(model):
        layer.lora_B.data += spread * torch.randn(layer.lora_B.shape, generator=generator)
    return model, pairs


def read_run(config: train.TrainConfig) -> list[dict]:
    return read_records(Path(config.out_dir) / "metrics.jsonl")


# ------------------------------------------------------------------------------------------------
# trl


class Collator(DataCollatorForPreference):
    """trl's, without the line break behind the last turn."""

    def torch_call(self, examples: list[dict]) -> dict:
        names = ("chosen_ids", "rejected_ids")
        ours = [{**row, **{name: row[name][:-1] for name in names}} for row in examples]
        return super().torch_call(ours)


def make_trainer(
    case: Case, config: train.TrainConfig, model: Transformer, rows: list[dict], out: Path
) -> DPOTrainer:
    """trl's trainer of our adapter; its reference is the model without one."""
    save_adapter(model, out / "adapter", config.model)
    base, reference = (
        transformers.AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
        for _ in range(2)
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model)
    fields = {
        "beta": case.beta,
        "precompute_ref_log_probs": True,
        "per_device_train_batch_size": config.batch_size,
        "max_steps": config.max_steps,
        "train_sampling_strategy": "sequential",
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": 0,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **case.theirs,
    }
    trainer = DPOTrainer(
        model=peft.PeftModel.from_pretrained(base, out / "adapter", is_trainable=True),
        ref_model=reference,
        args=DPOConfig(output_dir=str(out / "trl"), **fields),
        data_collator=Collator(tokenizer.pad_token_id, config.max_length),
        train_dataset=datasets.Dataset.from_list([as_messages(row) for row in rows]),
        processing_class=tokenizer,
    )
    scale = lambda row: {name: case.scale * row[name] for name in REFERENCE}  # noqa: E731
    trainer.train_dataset = trainer.train_dataset.map(scale)
    return trainer


def as_messages(row: dict) -> dict:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}


def train_theirs(trainer: DPOTrainer, config: train.TrainConfig) -> list[dict]:
    """trl's log of a run over the rows that a run of ours takes, step after step."""
    num_rows, size = len(trainer.train_dataset), config.batch_size
    assert num_rows % size == 0, "trl's batches would not end with an epoch of ours"
    steps = [step_indices(step, num_rows, size, config.seed) for step in range(config.max_steps)]
    order = [row for rows in steps for row in rows]
    trainer.train_dataset = trainer.train_dataset.select(order)
    trainer.train()
    return [record for record in trainer.state.log_history if "loss" in record]


# ------------------------------------------------------------------------------------------------
# the comparisons


def check_ids(trainer: DPOTrainer, pairs: list[TokenPair]) -> None:
    """Id by id: what stands in trl's batches are our pairs."""
    for row in trainer.train_dataset:
        for name in ("chosen_ids", "rejected_ids"):
            assert trainer.processing_class.decode(row[name][-2:]) == "<|im_end|>\n"
    batch = trainer.data_collator(list(trainer.train_dataset))
    chosen = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    rejected = [(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
    for i, (prompt, completion) in enumerate([*chosen, *rejected]):
        row, real, predicted = (
            batch[name][i] for name in ("input_ids", "attention_mask", "completion_mask")
        )
        assert row[real == 1].tolist() == [*prompt, *completion]
        assert row[predicted == 1].tolist() == completion.tolist()
    assert len(batch["input_ids"]) == 2 * len(pairs)


def check_logps(
    case: Case, trainer: DPOTrainer, model: Transformer, pairs: list[TokenPair]
) -> None:
    """Sums over completions, (2B,), of the policy and of the reference: 1e-5 relative."""
    packed = pack_pairs(pairs, list(range(len(pairs))))
    with torch.no_grad():
        policy = packed.sum_by_sequence(model(batch=packed).logps)
    reference = reference_logps(model, packed)
    padded = trainer.data_collator(list(trainer.train_dataset))
    witness = torch.cat(trainer.compute_ref_log_probs(trainer.model, padded))
    torch.testing.assert_close(policy, witness, rtol=1e-5, atol=0)
    witness = torch.cat([padded[name] for name in REFERENCE])
    torch.testing.assert_close(case.scale * reference, witness, rtol=1e-5, atol=0)
    assert (policy - reference).abs().mean() > 0.1  # the adapter has something to say


def check_runs(case: Case, ours: list[dict], theirs: list[dict], steps: int = STEPS) -> None:
    """metrics.jsonl against trl's log: the first step's terms, and the loss of every step."""
    assert len(ours) == len(theirs) == steps
    first, witness = ours[0], theirs[0]
    rewards = () if case.ours["objective"] in ("ipo", "f_dpo") else LOGGED
    for name in ("loss", *rewards):
        assert first[name] == pytest.approx(witness[name], rel=0, abs=case.step_0), name
    for name in ("logps/chosen", "logps/rejected"):  # means of sums
        assert first[name] == pytest.approx(witness[name], rel=1e-5), name
    assert first["grad_norm"] == pytest.approx(witness["grad_norm"], rel=1e-4)
    if "gradient_accumulation_steps" not in case.theirs:  # trl's would be a mean of means
        assert first["entropy"] == pytest.approx(witness["entropy"], rel=1e-5)
    for one, two in zip(ours, theirs, strict=True):
        assert one["lr"] == pytest.approx(two["learning_rate"], rel=1e-12), one["step"]
        assert one["loss"] == pytest.approx(two["loss"], rel=0, abs=1e-3), one["step"]


# ------------------------------------------------------------------------------------------------
# a random model, every objective

WORDS = "the cat sees hears old river, red? house\n\n1 + 2 = 3 é 🙂 not very Anna's.".split(" ")


def make_rows(count: int) -> list[dict]:
    draw = random.Random(0)
    text = lambda low, high: " ".join(draw.choices(WORDS, k=draw.randint(low, high)))  # noqa: E731
    return [
        {"prompt": text(1, 15), "chosen": text(1, 20), "rejected": text(1, 60)}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a byte-level BPE of 320 pieces and ChatML."""
    folder = tmp_path_factory.mktemp("small")
    save_witness(folder, {"vocab_size": 320, "num_key_value_heads": 2})
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"user\n{row['prompt']}assistant\n{row['chosen']}" for row in make_rows(200)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHATML,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_random_model(name: str, small_dir: Path, tmp_path: Path) -> None:
    """Cut completions, several micro-batches a step, two epochs, weight decay, clipping."""
    case, rows = CASES[name], make_rows(20)
    config = make_config(
        case,
        small_dir,
        rows,
        tmp_path,
        batch_size=4,
        max_length=80,
        max_prompt_length=60,
        micro_batch_tokens=250,
        lora_rank=4,
        lora_alpha=8.0,
        learning_rate=3e-3,
        schedule="cosine" if name == "dpo" else "linear",
        weight_decay=0.1,
        max_grad_norm=0.25,
        reference="cached" if name == "robust" else "online",
    )
    model, pairs = load_ours(config, spread=0.05)
    assert len({pair.rejected_ids[-1] for pair in pairs}) > 1  # some have lost their end of turn
    trainer = make_trainer(case, config, model, rows, tmp_path)
    check_ids(trainer, pairs)
    check_logps(case, trainer, model, pairs)

    Path(config.out_dir).mkdir()
    train.train(config, model, pairs, [], Path(config.out_dir), "cpu")
    ours = read_run(config)
    check_runs(case, ours, train_theirs(trainer, config))
    assert max(record["grad_norm"] for record in ours) > config.max_grad_norm


# ------------------------------------------------------------------------------------------------
# SmolLM2-135M-Instruct on UltraFeedback


@pytest.fixture(scope="module")
def short_rows(shared_data: Path) -> list[dict]:
    """The six shortest of the pairs with prompts of at most 80 characters."""
    file = shared_data / "ultrafeedback_binarized" / "train_clean.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    rows = [row for row in rows if len(row["prompt"]) <= 80]
    return sorted(rows, key=lambda row: len(row["chosen"] + row["rejected"]))[:6]


REAL_CASES = {
    "dpo": CASES["dpo"],
    "spl": Case({"objective": "spl", "alpha": 0.2, "beta": 0.1}, 0.2, 1 / 2, step_0=1e-4),
}


def real_config(
    case: Case, folder: Path, rows: list[dict], out: Path, **fields
) -> train.TrainConfig:
    fields |= {"batch_size": 2, "max_length": 72, "max_prompt_length": 60}
    fields |= {"lora_rank": 8, "lora_alpha": 16.0, "learning_rate": 2e-4, "schedule": "linear"}
    return make_config(case, folder, rows, out, **fields)


def test_real_logps(smollm2_dir: Path, short_rows: list[dict], tmp_path: Path) -> None:
    case = REAL_CASES["dpo"]
    config = real_config(case, smollm2_dir, short_rows, tmp_path)
    model, pairs = load_ours(config, spread=0.02)
    trainer = make_trainer(case, config, model, short_rows, tmp_path)
    check_ids(trainer, pairs)
    check_logps(case, trainer, model, pairs)


@pytest.mark.parametrize(("name", "reference"), [("dpo", "online"), ("spl", "cached")])
def test_real_runs(
    name: str,
    reference: str,
    smollm2_dir: Path,
    short_rows: list[dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`python train.py --config FILE` as it is, from the fresh adapter that it makes."""
    case = REAL_CASES[name]
    config = real_config(case, smollm2_dir, short_rows, tmp_path, reference=reference)
    config = replace(config, max_steps=REAL_STEPS)
    model, _ = load_ours(config, spread=0.0)
    trainer = make_trainer(case, config, model, short_rows, tmp_path)
    theirs = train_theirs(trainer, config)

    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_json(config)))
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(file)])
    train.main()
    check_runs(case, read_run(config), theirs, REAL_STEPS)
