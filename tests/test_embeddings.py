"""eval/embeddings.py: distances by hand and by torch, hidden states by transformers.

python -m pytest tests/test_embeddings.py
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from data.tokenizer import load_tokenizer
from eval import embeddings
from eval.embeddings import cosine_distances, embed, read_vectors

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "data" / "tiny")
TEXTS = ["Ben has 2 books.", "", "22 + 2 = 24 books\n#### 24", "a" * 600, "Ben has 2 books."]


def test_distances_by_hand() -> None:
    """East, north and west, of any length: 1, 2 and 1, so 4/3; with the diagonal 8/9 = 2/3 of it.

    Without each: west of north 1, west of east 2, north of east 1; halves with the diagonal.
    """
    all_pairs, pairs = cosine_distances(np.array([[2.0, 0], [0, 0.5], [-3, 0]]))
    assert pairs == pytest.approx([4 / 3, 1, 2, 1], abs=1e-15)
    assert all_pairs == pytest.approx([8 / 9, 1 / 2, 1, 1 / 2], abs=1e-15)


def test_distances_are_torch_s() -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 5)) + 1
    all_pairs, pairs = cosine_distances(vectors.astype(np.float32))
    for i in range(8):
        some = torch.from_numpy(np.delete(vectors, i - 1, axis=0) if i else vectors)
        N = len(some)
        cosines = torch.nn.functional.cosine_similarity(some[:, None], some[None], dim=-1)
        assert all_pairs[i] == pytest.approx((1 - cosines).mean().item(), abs=1e-6)
        assert pairs[i] == pytest.approx(all_pairs[i] * N / (N - 1), abs=1e-14)


def test_distances_of_equal_and_of_one() -> None:
    all_pairs, pairs = cosine_distances(np.full((3, 4), 7.0))
    assert all_pairs == pytest.approx([0] * 4, abs=1e-15) and (all_pairs >= 0).all()
    assert pairs == pytest.approx([0] * 4, abs=1e-15)
    all_pairs, pairs = cosine_distances(np.ones((1, 4)))
    assert all_pairs[0] == pytest.approx(0, abs=1e-15) and np.isnan(pairs).all()


# ------------------------------------------------------------------------------------------------
# hidden states


@pytest.mark.parametrize("packed", [4096, 30])
def test_hidden_states_are_those_of_transformers(packed: int, monkeypatch, capsys) -> None:
    """Text by text, [BOS] + text + EOS up to 256 positions, the mean without BOS."""
    monkeypatch.setattr(embeddings, "PACKED_TOKENS", packed)
    vectors, about = embed(TEXTS, None, TINY, None, "cpu", "float32")
    model = transformers.AutoModel.from_pretrained(TINY)
    tokenizer = load_tokenizer(TINY)
    start = [tokenizer.bos_id] if tokenizer.adds_bos else []
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = [*start, *tokenizer.encode(text), tokenizer.eos_id][:256]
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0, len(start) :]
        assert vector == pytest.approx(states.mean(dim=0).numpy(), abs=2e-5)
    assert about["kind"] == "mean last hidden state" and len(about["weights"]) == 64
    assert "1 texts fill the model's positions" in capsys.readouterr().out


def test_texts_fill_forwards_in_order(monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "PACKED_TOKENS", 10)
    assert list(embeddings.fill_forwards([4, 6, 1, 12, 3, 3])) == [[0, 1], [2], [3], [4, 5]]
    assert list(embeddings.fill_forwards([])) == []


# ------------------------------------------------------------------------------------------------
# files and sentence-transformers


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
    np.save(tmp_path / "v.npy", vectors)
    found, about = embed(["a", "b", "c"], str(tmp_path / "v.npy"), None, None, None, None)
    assert np.array_equal(found, vectors) and about == {"kind": "file"}


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((2, 4)), r"expected \(3, size\) floating-point numbers.*got \(2, 4\) of float64"),
        (np.ones(3), r"got \(3,\) of float64"),
        (np.ones((3, 4), dtype=np.int64), r"got \(3, 4\) of int64"),
        (np.array([[1.0], [0], [np.nan]]), "2 vectors have no direction, the first is 1"),
        (np.array([{}]), "expected an .npy file"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, vectors: np.ndarray, message: str) -> None:
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(ValueError, match=message):
        read_vectors(tmp_path / "v.npy", 3)


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--embeddings expects an .npy file, got .*none"):
        read_vectors(tmp_path / "none.npy", 3)
    (tmp_path / "v.npy").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"--embeddings .*v.npy: expected an .npy file"):
        read_vectors(tmp_path / "v.npy", 3)
    np.savez(tmp_path / "v.npz", np.ones((3, 4)))
    with pytest.raises(ValueError, match="got an archive"):
        read_vectors(tmp_path / "v.npz", 3)


def test_without_sentence_transformers_the_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="pip install sentence-transformers"):
        embed(["a"], None, None, "all-roberta-large-v1", "cpu", None)


def test_sentence_transformers_is_asked_for_the_vectors(monkeypatch) -> None:
    """A stand-in with the package's interface, whose vector of a text is (length, 1)."""

    class Encoder(torch.nn.Linear):
        def __init__(self, name: str, device: str) -> None:
            assert (name, device) == ("folder", "cpu")
            super().__init__(2, 2)

        def encode(self, texts: list[str], convert_to_numpy: bool) -> np.ndarray:
            return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    package = SimpleNamespace(SentenceTransformer=Encoder)
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    vectors, about = embed(["a", "bcd"], None, None, "folder", "cpu", None)
    assert vectors.tolist() == [[1, 1], [3, 1]]
    assert about["kind"] == "sentence-transformers" and len(about["weights"]) == 64
