"""What the ranks of tests/test_parallel.py run: one job after another, in one start of torchrun.

    torchrun --nproc_per_node=4 tests/ranks.py JOBS.json

JOBS.json: a list of ["train" or "sample" or "arithmetic", flag, ...] and of ["check", name].
"""

import json
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sample
import train
from eval import arithmetic
from model import parallel
from model.checkpoint import allocate, empty_model, load_model, read_weights
from model.lora import add_lora, initial_adapters
from model.run import run_main
from model.transformer import Transformer

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"
SCRIPTS = {"train": train.main, "sample": sample.main, "arithmetic": arithmetic.main}


def main() -> None:
    for name, *words in json.loads(Path(sys.argv[1]).read_text()):
        if name == "check":
            CHECKS[words[0]](*words[1:])
            continue
        argv, sys.argv = sys.argv, [name, *words]
        SCRIPTS[name]()
        sys.argv = argv
        parallel.any_rank(False)


def check_collectives() -> None:
    rank, ranks = parallel.rank(), parallel.world_size()
    assert parallel.sum_over_ranks(torch.tensor([1.0, rank])).tolist() == [
        ranks,
        sum(range(ranks)),
    ]
    assert parallel.max_over_ranks(-float(rank)) == 0
    assert parallel.any_rank(rank == 1) and not parallel.any_rank(False)
    texts = ["ä" * rank, {"rank": rank}]
    assert parallel.gather_json(texts) == [["ä" * r, {"rank": r}] for r in range(ranks)]
    for count in (0, 1, ranks, 2 * ranks + 1):
        shares = parallel.gather_json(list(parallel.share(count)))
        assert sorted(i for some in shares for i in some) == list(range(count))
    said = parallel.says_first("the same"), parallel.says_first(f"mine, {rank}")
    firsts = parallel.gather_json(list(said))
    assert [sum(column) for column in zip(*firsts, strict=True)] == [1, ranks]


def check_shards(folder: str) -> None:
    """Uneven rows, more ranks than rows, tied or not: what is filled is what is gathered."""
    plain = load_model(folder)
    add_lora(plain, 3, 6.0, seed=5)
    model = empty_model(folder, torch.float32)
    add_lora(model, 3, 6.0)
    parallel.shard(model, "cpu", torch.float32)
    allocate(model, "cpu")
    read_weights(model, folder)
    for parameter, values in initial_adapters(model, seed=5):
        parallel.fill(parameter, values)
    ranks, held = parallel.world_size(), 0
    for one, two in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert one[0] == two[0] and parallel.is_sharded(two[1])
        assert torch.equal(one[1], parallel.whole(two[1])), one[0]
        local, rows = parallel.owned(two[1])
        assert torch.equal(local, one[1][rows]) and len(local) <= -(-len(one[1]) // ranks)
        held += local.numel()
    total = sum(parameter.numel() for parameter in plain.parameters())
    assert sum(parallel.gather_json(held)) == total
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        assert torch.equal(plain(tokens), model(tokens))
    assert not parallel.is_sharded(model.norm.weight)  # the root stays gathered
    parallel.drop_gathered(model)
    assert parallel.is_sharded(model.norm.weight)


def load_shards(folder: str | Path) -> Transformer:
    model = empty_model(folder, torch.float32)
    parallel.shard(model, "cpu", torch.float32)
    allocate(model, "cpu")
    read_weights(model, folder)
    return model


def check_lockstep(folder: str) -> None:
    """Each rank calls the model another number of times, of several ranks one not at all."""
    model = load_shards(folder)
    rank, ranks = parallel.rank(), parallel.world_size()
    tokens, calls = torch.arange(5)[None], 3 * (rank if ranks > 1 else 2)
    parallel.FORGET_EVERY = 4
    with torch.inference_mode(), parallel.in_lockstep(model):
        logits = [model(tokens) for _ in range(calls)]
    assert all(torch.equal(one, logits[0]) for one in logits)
    assert len(logits) == calls and parallel.is_sharded(model.norm.weight)
    noted = len(model._get_fsdp_state()._comm_ctx.post_forward_order)
    groups = len(model.layers) + 1
    assert noted <= parallel.FORGET_EVERY * groups, noted
    with torch.no_grad():  # what was drawn first can be scored afterwards
        scored = model(tokens)
    for one in logits:
        torch.testing.assert_close(scored, one)
    parallel.drop_gathered(model)


def check_loading(folder: str, limit: str) -> None:
    """The most memory that loading takes, above what the process had, in shares of the weights."""
    load_shards(TINY)  # the modules that sharding imports are no part of it
    begin, _ = memory(reset=True)
    model = load_shards(folder)
    taken = memory()[1] - begin
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert parallel.max_over_ranks(taken / size) < float(limit), taken / size


def memory(reset: bool = False) -> tuple[int, int]:
    """Bytes of this process now, and at most so far (since the last reset)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    now, peak = (int(re.search(rf"{key}:\s+(\d+)", text)[1]) for key in ("VmRSS", "VmHWM"))
    return 1024 * now, 1024 * peak


CHECKS = {
    "collectives": check_collectives,
    "shards": check_shards,
    "lockstep": check_lockstep,
    "loading": check_loading,
}


if __name__ == "__main__":
    run_main(main)
