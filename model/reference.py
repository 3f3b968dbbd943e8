"""The reference policy's log-probabilities: online through disabled adapters, or cached.

A cache is named by the hash of all that its numbers depend on (weights, token ids, dtype), is
checked against that hash when it is read, and is never trusted on a mismatch.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from model.checkpoint import base_parameters
from model.files import write_tensors
from model.lora import adapters_disabled
from model.parallel import any_rank, drop_gathered, gather_json, is_main, sum_over_ranks, whole
from model.transformer import Transformer


@torch.no_grad()
def reference_logps(model: Transformer, batch: Any) -> Tensor:
    """(2B,) log-probabilities of a packed batch's completions with the adapters disabled."""
    with adapters_disabled(model):
        return batch.sum_by_sequence(model(batch=batch).logps)


def cached_reference_logps(
    model: Transformer,
    weights: str,
    pairs: Sequence[Any],
    batches: Iterable[Any],
    folder: Path,
    device: str,
) -> Tensor:
    """(N, 2) chosen and rejected logps of every pair, read from the folder or made there.

    weights: `hash_weights` of the model; batches: this rank's packed batches, those of all ranks
    hold each pair once.
    """
    key = reference_key(weights, pairs)
    file = folder / f"{key[:16]}.safetensors"
    cached = read_cache(file, key, len(pairs)) if is_main() else None
    if any_rank(cached is not None):
        cached = sum_over_ranks(torch.zeros(len(pairs), 2) if cached is None else cached)
        print(f"reference: {len(pairs)} pairs read from {file}")
        return cached
    logps = compute_reference_logps(model, pairs, batches, device)
    if is_main():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors({"logps": logps}, file, {"key": key, "sha256": digest_of(logps)})
    print(f"reference: {len(pairs)} pairs cached in {file}")
    return logps


def compute_reference_logps(
    model: Transformer, pairs: Sequence[Any], batches: Iterable[Any], device: str
) -> Tensor:
    """(N, 2) chosen and rejected logps of every pair; batches: see `cached_reference_logps`."""
    logps, times = torch.zeros(len(pairs), 2), torch.zeros(len(pairs))
    bar = tqdm(batches, desc="reference", unit="batch", leave=False, disable=not is_main())
    for batch in bar:
        chosen, rejected = reference_logps(model, batch.to(device)).cpu().chunk(2)
        logps[batch.pair_ids] = torch.stack([chosen, rejected], dim=1).float()
        times[batch.pair_ids] += 1
    drop_gathered(model)
    logps, times = sum_over_ranks(logps), sum_over_ranks(times)
    assert (times == 1).all(), f"pairs computed other than once: {(times != 1).nonzero().tolist()}"
    if not logps.isfinite().all():
        bad = (~logps.isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise ValueError(
            f"the reference policy gives {len(bad)} pairs no finite log-probability, "
            f"the first is {pairs[bad[0]].source}; are the weights broken?"
        )
    return logps


def read_cache(file: Path, key: str, pairs: int) -> Tensor | None:
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as reader:
            about = reader.metadata() or {}
            if about.get("key") == key:
                logps = reader.get_tensor("logps")
                if logps.shape == (pairs, 2) and digest_of(logps) == about.get("sha256"):
                    return logps
                reason = "it is not what was written"
            else:
                reason = "it was made from other weights or data"
    except SafetensorError as error:
        reason = f"it is corrupt: {error}"
    print(f"reference: {file} is not used, {reason}; computing it again")
    return None


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).hexdigest()


def hash_weights(model: Transformer, adapters: bool = False) -> str:
    """SHA-256 over a policy: its architecture, its weights and their dtypes.

    adapters: the policy with its adapters; else without them, which is the reference.
    """
    digest = hashlib.sha256(repr((model.config, model.compute_dtype)).encode())
    parameters = dict(model.named_parameters()) if adapters else base_parameters(model)
    for name, parameter in parameters.items():
        weight = whole(parameter)  # one at a time, gathered where the model is sharded
        if is_main():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.cpu().contiguous().view(torch.uint8).numpy())
    return gather_json(digest.hexdigest())[0]


def reference_key(weights: str, pairs: Sequence[Any]) -> str:
    """SHA-256 over `hash_weights` and the token ids of the pairs: all that the logps depend on."""
    digest = hashlib.sha256(weights.encode())
    for pair in pairs:
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(ids, dtype=np.int32))
    return digest.hexdigest()
