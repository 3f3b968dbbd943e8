"""Rewards of given completions: each prompt laid out once, before all of them.

The reward of a completion is what the head says at its last token: the end-of-turn token, unless
the completion was cut. transformers takes the last token that is not `pad_token_id`: the same one,
but in a checkpoint that pads with its end-of-turn token, which is left out there. What we write
names no `pad_token_id`: transformers then takes the last token, and refuses a batch of many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.adapter import has_head, load_policy
from model.architecture import read_model_config
from model.attention import Segment
from model.score import pack_parts, plan_forwards
from model.transformer import Transformer

BEHIND = 0  # stands for the token behind a completion: it has a place, and is not laid out


@dataclass(frozen=True)
class RewardBatch:
    """A packed batch of one prompt and S of its completions."""

    input_ids: Tensor  # (T,)
    positions: Tensor  # (T,)
    segments: list[Segment]
    last_rows: Tensor  # (S,)


def load_reward_model(
    model: str | Path,
    adapter: str | Path | None,
    dtype: torch.dtype,
    device: str,
    sharded: bool = False,
) -> Transformer:
    """A reward model, from its folder or from a base with a reward model's adapter.

    Raises as `load_policy` does, and ValueError where neither has a head.
    """
    if not read_model_config(model).scalar_head and not (adapter and has_head(adapter)):
        raise ValueError(
            f"--reward_model {model} is a language model without a reward head; "
            "pass the --reward_adapter that train.py --objective reward has left"
        )
    return load_policy(model, adapter, dtype, device, sharded, reward=True)


@torch.no_grad()
def completion_rewards(
    model: Transformer, prompt: Sequence[int], completions: Sequence[Sequence[int]]
) -> list[float]:
    """The reward of each completion behind a prompt, in packed forwards of these alone.

    prompt, completions: token ids; a completion without a token is judged at the prompt's end.
    A reward stands in the row that would predict the token behind the completion.
    """
    device, rewards = model.norm.weight.device, []
    followed = [[*completion, BEHIND] for completion in completions]
    for (part,) in plan_forwards([prompt], [followed], 0):
        some = followed[part.first : part.last]
        packed = pack_parts([prompt], [some], 0)
        ends = torch.tensor([len(completion) for completion in some]).cumsum(0)
        batch = RewardBatch(
            packed.input_ids.to(device),
            packed.positions.to(device),
            packed.segments,
            packed.predictors[ends - 1].to(device),
        )
        rewards += model(batch=batch).tolist()
    return rewards
