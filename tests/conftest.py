"""Where the tests find real models and data; a test that needs an absent one skips and says so."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SHARED_DIR", ROOT.parent / "shared"))
MODELS = Path(os.environ.get("MODELS_DIR", ROOT.parent / "models"))


def pytest_configure(config: pytest.Config) -> None:
    """A GPU is seen by the tests marked `gpu` alone: the others compare with numbers of the CPU.

    Workers side by side (`pytest -n 2`) share the cores: neither waits for the other's threads. A
    shell ignores Ctrl-C for what it runs in the background, and what tests start would inherit it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of the processes that tests start
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and pytest -m gpu")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def find_or_skip(path: Path, variable: str) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name} is not here; set {variable} to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct (float32), a Llama with byte-level BPE and ChatML."""
    return find_or_skip(MODELS / "smollm2", "MODELS_DIR")


@pytest.fixture(scope="session")
def stories_dir() -> Path:
    """stories260k, a trained Llama of 260 thousand parameters with a sentencepiece tokenizer."""
    return find_or_skip(SHARED / "models" / "stories260k", "SHARED_DIR")


@pytest.fixture(scope="session")
def mistral_tokenizer_dir() -> Path:
    """The sentencepiece tokenizer of Mistral-7B-v0.1 and Zephyr-7B, without weights."""
    return find_or_skip(SHARED / "models" / "mistral-7b-v0.1-tokenizer", "SHARED_DIR")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real preference and evaluation data (hh_rlhf, ultrafeedback_binarized, ...)."""
    return find_or_skip(SHARED / "data", "SHARED_DIR")
