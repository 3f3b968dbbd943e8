"""trl's DPOTrainer on our token ids: the peer of `eval.speed train`.

Imported where trl, transformers, peft and datasets are installed. The trainer is given ids instead
of texts, our fresh adapter's values, one learning rate, float32 (or bfloat16 throughout), and no
gradient checkpointing, which would make it slower. Its step lasts from the end of one step to the
end of the next, so that its batches and its log are in it, as ours are.
"""

import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch.utils.data import SequentialSampler
from trl import DPOConfig, DPOTrainer

from data.pairs import TokenPair
from eval.speed import begin_peak, peak_bytes
from model.checkpoint import DTYPES
from model.lora import TARGETS


def run_trl(config: Any, steps: list[list[TokenPair]]) -> dict[str, Any]:
    """seconds and losses of every step, and memory. config: a SpeedStepConfig."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            config, [pair for step in steps for pair in step], len(steps), folder
        )
        clock = Clock(config.device)
        trainer.add_callback(clock)
        trainer.train()
    losses = torch.stack(trainer.losses).tolist()
    result = {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds, "losses": losses}
    return result | {"begin_bytes": clock.begin, "peak_bytes": peak_bytes(config.device)}


class Trainer(DPOTrainer):
    """Takes token ids as they are, pairs in order, and keeps the exact losses."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append(loss.detach().float())
        return loss


class Clock(transformers.TrainerCallback):
    def __init__(self, device: str) -> None:
        self.device, self.begin, self.last = device, None, (0.0, 0.0)
        self.seconds, self.cpu_seconds = [], []

    def on_train_begin(self, *args, **kwargs) -> None:
        self.begin = begin_peak(self.device)
        self.last = self.now()

    def on_step_end(self, *args, **kwargs) -> None:
        now = self.now()
        self.seconds.append(now[0] - self.last[0])
        self.cpu_seconds.append(now[1] - self.last[1])
        self.last = now

    def now(self) -> tuple[float, float]:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()


def make_trainer(config: Any, pairs: list[TokenPair], num_steps: int, folder: str) -> Trainer:
    dtype = DTYPES[config.dtype]
    base = transformers.AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype)
    lora = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(TARGETS),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    trainer = Trainer(
        model=base,
        args=dpo_config(config, num_steps, folder),
        train_dataset=datasets.Dataset.from_list([as_row(pair) for pair in pairs]),
        processing_class=padding_tokenizer(),
        peft_config=lora,
    )
    trainer.losses = []
    state = load_file(Path(config.adapter) / "adapter_model.safetensors")
    peft.set_peft_model_state_dict(trainer.model, state)
    return trainer


def dpo_config(config: Any, num_steps: int, folder: str) -> DPOConfig:
    """Names that a version of trl has not are left out; the losses tell whether it mattered."""
    options = {
        "beta": config.beta,
        "precompute_ref_log_probs": config.variant == "trl_cached",
        "per_device_train_batch_size": config.batch_size,
        "max_steps": num_steps,
        "max_length": None,
        "max_prompt_length": None,
        "max_completion_length": None,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "use_cpu": not config.device.startswith("cuda"),
        "bf16": config.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": config.device.startswith("cuda"),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    known = {field.name for field in fields(DPOConfig)}
    return DPOConfig(output_dir=folder, **{k: v for k, v in options.items() if k in known})


def as_row(pair: TokenPair) -> dict[str, list[int]]:
    """The ids under the names of trl's newer and older versions."""
    row = {}
    for name in ("prompt", "chosen", "rejected"):
        ids = getattr(pair, f"{name}_ids").tolist()
        row |= {f"{name}_ids": ids, f"{name}_input_ids": ids}
    return row


def padding_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """All that a trainer of token ids needs of a tokenizer: what it pads with."""
    only = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    names = {"pad_token": "<pad>", "eos_token": "<pad>", "bos_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=only, **names)
