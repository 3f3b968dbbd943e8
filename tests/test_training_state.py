"""Checkpoints of a run: everything comes back bit for bit, and what does not fit is refused.

pytest tests/test_training_state.py
"""

import json
import shutil
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.lora import add_lora
from model.training_state import (
    describe,
    load_training_state,
    refuse_changes,
    save_training_state,
)
from tests.test_lora import small_model
from train import TrainConfig

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
    save_training_state(tmp_path, model, optimizer, 12, CONFIG)
    assert not torn.exists()  # nobody will finish it


def test_a_step_of_seven_digits_is_newer_than_one_of_six(tmp_path):
    model, optimizer = policy_and_optimizer(steps=1)
    for step in (999_998, 999_999, 1_000_000):
        save_training_state(tmp_path, model, optimizer, step, CONFIG, keep=2)
    left = sorted(f.name for f in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-1000000", "step-999999"]
    assert load_training_state(tmp_path, *policy_and_optimizer(), CONFIG) == 1_000_000


def test_which_flags_may_change_between_the_parts_of_a_run(tmp_path):
    """Those that change no number; with --inexact_resume those that change the last bits."""
    free = {"resume", "inexact_resume", "out_dir", "reference_cache", "save_every", "keep",
            "eval_every", "sample_prompts", "activation_checkpointing", "keep_every", "plan",
            "world_size"}  # fmt: skip
    rounding = {"device", "micro_batch_tokens", "head_kernel", "head_workspace_mib", "compile",
                "replicas", "cpu_offload"}  # fmt: skip
    for field in fields(TrainConfig):
        asked = tmp_path, {field.name: 1}, {field.name: 2}
        if field.name in free:
            assert refuse_changes(*asked, False) == ""
        elif field.name in rounding:
            assert refuse_changes(*asked, True) == f"--{field.name} was 1, is 2"
            with pytest.raises(ValueError, match="would not go on bit for bit"):
                refuse_changes(*asked, False)
        else:
            with pytest.raises(ValueError, match="belongs to another run"):
                refuse_changes(*asked, True)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--resume expects a whole checkpoint in"):
        load_training_state(tmp_path, *policy_and_optimizer(), CONFIG)
    model, optimizer = policy_and_optimizer(steps=1)
    folder = save_training_state(tmp_path, model, optimizer, 1, CONFIG)
    with pytest.raises(ValueError, match=r"--beta was 0.1, is 0.2"):
        load_training_state(tmp_path, *policy_and_optimizer(), {**CONFIG, "beta": 0.2})
    with pytest.raises(ValueError, match=r"trained tensor '\S+lora_A' does not fit"):
        load_training_state(tmp_path, *policy_and_optimizer(rank=2), CONFIG)
    file = folder / "shard-00000-of-00001.safetensors"
    tensors = load_file(file)
    lost = next(name for name in sorted(tensors) if name.endswith("lora_B"))
    save_file({n: t for n, t in tensors.items() if not n.startswith(lost)}, file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file.name] = describe(file)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"trained tensor '{lost}' does not fit"):
        load_training_state(tmp_path, *policy_and_optimizer(), CONFIG)


SHARD = "shard-00000-of-00001.safetensors"


@pytest.mark.parametrize("name", [SHARD, "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "lose"])
def test_a_torn_checkpoint_is_named_and_skipped(name, harm, tmp_path, capsys):
    model, optimizer = policy_and_optimizer(steps=1)
    for step in (9, 10):
        folder = save_training_state(tmp_path, model, optimizer, step, CONFIG)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content if harm == "flip" else content[: len(content) // 2])
    if harm == "lose":
        (folder / name).unlink()
    assert load_training_state(tmp_path, *policy_and_optimizer(), CONFIG) == 9
    assert f"{folder} is skipped: " in capsys.readouterr().out
    shutil.rmtree(tmp_path / "checkpoints" / "step-000009")
    with pytest.raises(FileNotFoundError, match="expects a whole checkpoint"):
        load_training_state(tmp_path, *policy_and_optimizer(), CONFIG)


def test_a_manifest_that_leaves_the_state_out_vouches_for_nothing(tmp_path, capsys):
    model, optimizer = policy_and_optimizer(steps=1)
    for step in (9, 10):
        folder = save_training_state(tmp_path, model, optimizer, step, CONFIG)
    (folder / "manifest.json").write_text('{"files": {}}')
    assert load_training_state(tmp_path, *policy_and_optimizer(), CONFIG) == 9
    assert f"{folder} is skipped: its manifest has no state.json" in capsys.readouterr().out


def test_older_checkpoints_go_when_the_newer_is_whole(tmp_path):
    model, optimizer = policy_and_optimizer(steps=1)
    for step in range(1, 6):
        save_training_state(tmp_path, model, optimizer, step, CONFIG, keep=2)
        left = sorted(f.name for f in (tmp_path / "checkpoints").iterdir())
        assert left == [f"step-{i:06d}" for i in range(max(1, step - 1), step + 1)]


def test_what_changes_the_last_bits_has_to_be_allowed(tmp_path, capsys):
    model, optimizer = policy_and_optimizer(steps=1)
    save_training_state(tmp_path, model, optimizer, 1, {**CONFIG, "number of threads": 2})
    now = {**CONFIG, "number of threads": 4, "keep_every": 3}
    with pytest.raises(ValueError, match=r"bit for bit: number of threads was 2, is 4; .*_resume"):
        load_training_state(tmp_path, *policy_and_optimizer(), now)
    assert load_training_state(tmp_path, *policy_and_optimizer(), now, inexact=True) == 1
    assert "the last bits will differ: number of threads was 2, is 4" in capsys.readouterr().out


def test_a_run_that_is_started_again_may_have_no_checkpoint(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert load_training_state(tmp_path, *policy_and_optimizer(), CONFIG) == 0
