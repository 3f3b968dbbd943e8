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

from model.checkpoint import write_tensors
from model.lora import adapters_disabled
from model.transformer import Transformer


@torch.no_grad()
def reference_logps(model: Transformer, batch: Any) -> Tensor:
    """(2B,) log-probabilities of a packed batch's completions with the adapters disabled."""
    with adapters_disabled(model):
        return batch.sum_by_sequence(model(batch=batch).logps)


def cached_reference_logps(
    model: Transformer, weights: str, pairs: Sequence[Any], batches: Iterable[Any], out_dir: Path
) -> Tensor:
    """(N, 2) chosen and rejected logps of every pair, read from out_dir/reference or made there.

    weights: `hash_weights` of the model; batches: packed batches that hold each pair once.
    """
    key = reference_key(weights, pairs)
    file = out_dir / "reference" / f"{key[:16]}.safetensors"
    cached = read_cache(file, key)
    if cached is not None:
        print(f"reference: {len(pairs)} pairs read from {file}")
        return cached
    device = model.embed_tokens.weight.device
    logps = torch.full((len(pairs), 2), float("nan"))
    for batch in tqdm(batches, desc="reference", unit="batch", leave=False):
        chosen, rejected = reference_logps(model, batch.to(device)).cpu().chunk(2)
        logps[batch.pair_ids] = torch.stack([chosen, rejected], dim=1).float()
    if not logps.isfinite().all():
        bad = (~logps.isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise ValueError(
            f"the reference policy gives {len(bad)} pairs no finite log-probability, "
            f"the first is {pairs[bad[0]].source}; are the weights broken?"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors({"logps": logps}, file, {"key": key})
    print(f"reference: {len(pairs)} pairs cached in {file}")
    return logps


def read_cache(file: Path, key: str) -> Tensor | None:
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as reader:
            if (reader.metadata() or {}).get("key") == key:
                return reader.get_tensor("logps")
            reason = "it was made from other weights or data"
    except SafetensorError as error:
        reason = f"it is corrupt: {error}"
    print(f"reference: {file} is not used, {reason}; computing it again")
    return None


def hash_weights(model: Transformer) -> str:
    """SHA-256 over the reference policy: its architecture, its weights and their dtypes."""
    digest = hashlib.sha256(repr((model.config, model.compute_dtype)).encode())
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        name = name.replace(".base.", ".")  # beside an adapter or without one
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def reference_key(weights: str, pairs: Sequence[Any]) -> str:
    """SHA-256 over `hash_weights` and the token ids of the pairs: all that the logps depend on."""
    digest = hashlib.sha256(weights.encode())
    for pair in pairs:
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(ids, dtype=np.int32))
    return digest.hexdigest()
