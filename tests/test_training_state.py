"""Checkpoints of a run: everything comes back bit for bit, and what does not fit is refused.

pytest tests/test_training_state.py
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.lora import add_lora
from model.training_state import load_training_state, save_training_state
from tests.test_lora import small_model

CONFIG = {"beta": 0.1, "data": ["a.jsonl"], "resume": False}


def policy_and_optimizer(steps: int = 0, rank: int = 4):
    model = small_model()
    add_lora(model, rank=rank, alpha=8.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, fused=True)
    for step in range(steps):
        model(torch.arange(5 + step)[None]).logsumexp(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def tensors(model, optimizer) -> list[torch.Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    state = [value for p in trained for _, value in sorted(optimizer.state[p].items())]
    return [*model.parameters(), *state]


def test_everything_comes_back_bit_for_bit(tmp_path):
    model, optimizer = policy_and_optimizer(steps=3)
    save_training_state(tmp_path, model, optimizer, 3, CONFIG)
    again, again_optimizer = policy_and_optimizer()
    assert load_training_state(tmp_path, again, again_optimizer, {**CONFIG, "resume": True}) == 3
    one, two = tensors(model, optimizer), tensors(again, again_optimizer)
    assert len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_state_lies_beside_its_parameter(tmp_path):
    """The fused optimiser on a GPU wants the step count there, too."""
    model, optimizer = policy_and_optimizer(steps=1)
    save_training_state(tmp_path, model, optimizer, 1, CONFIG)
    again, again_optimizer = policy_and_optimizer()
    moved = []
    real = torch.Tensor.to

    def watch(tensor, *args, **kwargs):
        moved.append(args[0] if args else None)
        return real(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", watch)
        load_training_state(tmp_path, again, again_optimizer, CONFIG)
    assert sum(device == torch.device("cpu") for device in moved) == 28  # one step count for each


def test_newest_whole_checkpoint_is_taken(tmp_path):
    model, optimizer = policy_and_optimizer(steps=1)
    for step in (9, 10):
        save_training_state(tmp_path, model, optimizer, step, CONFIG)
    torn = tmp_path / "checkpoints" / "step-000011.partial"  # died before the rename
    torn.mkdir()
    (torn / "state.json").write_text("{")
    assert load_training_state(tmp_path, *policy_and_optimizer(), CONFIG) == 10


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--resume expects a checkpoint in"):
        load_training_state(tmp_path, *policy_and_optimizer(), CONFIG)
    model, optimizer = policy_and_optimizer(steps=1)
    folder = save_training_state(tmp_path, model, optimizer, 1, CONFIG)
    with pytest.raises(ValueError, match=r"--beta was 0.1, is 0.2"):
        load_training_state(tmp_path, *policy_and_optimizer(), {**CONFIG, "beta": 0.2})
    with pytest.raises(ValueError, match=r"trained tensor \S+lora_A does not fit"):
        load_training_state(tmp_path, *policy_and_optimizer(rank=2), CONFIG)
    file = folder / "shard-00000-of-00001.safetensors"
    tensors = load_file(file)
    lost = next(name for name in sorted(tensors) if name.endswith("lora_B"))
    save_file({n: t for n, t in tensors.items() if not n.startswith(lost)}, file)
    with pytest.raises(ValueError, match=f"trained tensor {lost} does not fit"):
        load_training_state(tmp_path, *policy_and_optimizer(), CONFIG)
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"of-00001.safetensors is truncated or corrupt"):
        load_training_state(tmp_path, *policy_and_optimizer(), CONFIG)
