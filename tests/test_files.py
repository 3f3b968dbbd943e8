"""Files of a folder that may come from anywhere: what is refused, and what a crash leaves.

pytest tests/test_files.py
"""

import json
import resource
import struct
from pathlib import Path

import pytest
import torch

from model.files import check_memory, read_json, tensor_shapes, write_tensors


def write_raw(file: Path, header: dict, data: bytes = bytes(64), length: int = -1) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", length if length >= 0 else len(text)) + text + data)


def tensor(shape: tuple = (4, 4), begin: int = 0, end: int = 64, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}


# ------------------------------------------------------------------------------------------------
# safetensors


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32, 99_999_999, 2**63, 2**64 - 1])
def test_lengths_of_the_header(length, tmp_path):
    write_raw(tmp_path / "x.safetensors", {"a": tensor()}, length=length)
    with pytest.raises(ValueError, match=r"x.safetensors is truncated or corrupt"):
        tensor_shapes(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor(), "b": tensor()},
        {"a": tensor((8,), 0, 32), "b": tensor((8,), 16, 48)},
        {"a": tensor((4,), 0, 16), "b": tensor((4,), 48, 64)},
        {"a": tensor((32,), 0, 128)},
        {"a": tensor((16,), 64, 0)},
        {"a": tensor((16,), -64, 0)},
        {"a": tensor((4, 5))},
        {"a": tensor((2**40, 2**40))},
        {"a": tensor((-4, -4))},
        {"a": tensor(dtype="F31")},
        {"a": tensor(), "__metadata__": {"format": {"a": 1}}},
        {"a": {}},
        [],
    ],
)
def test_tensors_that_overlap_or_lie_outside(header, tmp_path):
    write_raw(tmp_path / "x.safetensors", header)
    with pytest.raises(ValueError, match=r"x.safetensors is truncated or corrupt"):
        tensor_shapes(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", ["I64", "I8", "BOOL", "F8_E4M3", "F8_E5M2"])
def test_dtypes_that_are_no_weights(dtype, tmp_path):
    size = {"I64": 8}.get(dtype, 1)
    write_raw(tmp_path / "x.safetensors", {"a": tensor((64 // size,), dtype=dtype)})
    with pytest.raises(ValueError, match=rf"tensor 'a' expects floats, got {dtype}"):
        tensor_shapes(tmp_path / "x.safetensors")


@pytest.mark.parametrize("shape", [(), (0, 2**63)])
def test_shapes_that_torch_cannot_have(shape, tmp_path):
    data = bytes(0 if shape else 4)
    write_raw(tmp_path / "x.safetensors", {"a": tensor(shape, 0, len(data))}, data)
    with pytest.raises(ValueError, match="tensor 'a' has a shape of no use"):
        tensor_shapes(tmp_path / "x.safetensors")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    """A limit on the size of files stands for a full disk; the old file and its bytes stay."""
    file = tmp_path / "tensors.safetensors"
    write_tensors({"a": torch.arange(5.0)}, file)
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"tensors.safetensors"):
            write_tensors({"a": torch.zeros(100_000)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before


# ------------------------------------------------------------------------------------------------
# JSON, memory


def test_json_of_a_run_is_read_by_the_same_rules(tmp_path):
    (tmp_path / "manifest.json").write_text('{"files": {}, "files": {}}')
    with pytest.raises(ValueError, match=r"manifest.json is not JSON: 'files' stands twice"):
        read_json(tmp_path / "manifest.json")


def test_what_is_larger_than_this_machine():
    check_memory(10**6, "a small thing")
    with pytest.raises(ValueError, match=r"it would take 1000000000\.0 GB of memory; this machine"):
        check_memory(10**18, "it")
