"""Texts -> vectors, and how far apart these point: the mean pairwise cosine distance.

The vectors come from a file, from a checkpoint of ours or from sentence-transformers. Cosines of
different encoders are not comparable. A language model's hidden states are the encoder at hand, not
a good one: they share a large mean, so that distances are small, and what is no language looks all
the same to them, so that distances can fall where words grow more diverse. Where the number itself
matters, take an encoder that was trained for similarity.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.chat import bos_length, detect_chat_format, encode_prompts
from data.tokenizer import load_tokenizer
from model.checkpoint import load_model
from model.reference import hash_weights
from model.run import choose_device
from model.transformer import Transformer

PACKED_TOKENS = 4096  # of one forward, beyond its first text


def cosine_distances(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of 1 - cosine over pairs of N vectors (N, D): over all i, j, and over i != j.

    (N + 1,) each: of all vectors, then without each. SPL's diversity is the first, in which the
    diagonal counts N zeros: it is (N - 1) / N times the second, which does not depend on N. From
    the sum s of the unit vectors: the cosines of all i, j add up to |s|^2. NaN for the distinct
    pairs of one vector.
    """
    units = np.asarray(vectors, dtype=np.float64)
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    N, total = len(units), units.sum(axis=0)
    sums = np.vstack([total, total - units])  # (N + 1, D)
    sizes = np.append(N, np.full(N, N - 1))
    apart = np.maximum(sizes**2 - np.square(sums).sum(axis=1), 0.0)  # of all i, j
    with np.errstate(invalid="ignore"):
        pairs = np.where(sizes > 1, sizes * (sizes - 1), np.nan)
        return apart / np.maximum(sizes, 1) ** 2, apart / pairs


# ------------------------------------------------------------------------------------------------
# where they come from


def embed(
    texts: Sequence[str],
    file: str | None,
    model: str | None,
    sentence_encoder: str | None,
    device: str | None,
    dtype: str | None,
) -> tuple[np.ndarray, dict]:
    """(N, D) vectors of N texts, and what made them; one of file, model, sentence_encoder is set.

    The maker of a file's vectors is not known.
    """
    if file is not None:
        return read_vectors(file, len(texts)), {"kind": "file"}
    device, dtype = choose_device(device, dtype)
    if model is not None:
        vectors, weights = hidden_state_vectors(model, texts, dtype, device)
        return vectors, {"kind": "mean last hidden state", "weights": weights}
    vectors, weights = sentence_vectors(sentence_encoder, texts, device)
    return vectors, {"kind": "sentence-transformers", "weights": weights}


def read_vectors(path: str | Path, rows: int) -> np.ndarray:
    """(rows, D) float numbers of an .npy file; ValueError for another shape or a zero vector."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--embeddings expects an .npy file, got {path}: no such file")
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise ValueError(f"--embeddings {path}: expected an .npy file of numbers") from None
    shape = getattr(vectors, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != rows or vectors.dtype.kind != "f":
        got = "an archive" if shape is None else f"{shape} of {vectors.dtype}"
        raise ValueError(
            f"--embeddings {path}: expected ({rows}, size) floating-point numbers, a row for each "
            f"completion in the order of the samples file, got {got}"
        )
    return check_vectors(vectors, f"--embeddings {path}")


def check_vectors(vectors: np.ndarray, where: str) -> np.ndarray:
    length = np.linalg.norm(vectors.astype(np.float64), axis=1)
    bad = np.flatnonzero(~((length > 0) & np.isfinite(length)))
    if len(bad):
        raise ValueError(f"{where}: {len(bad)} vectors have no direction, the first is {bad[0]}")
    return vectors


def hidden_state_vectors(
    folder: str | Path, texts: Sequence[str], dtype: torch.dtype, device: str
) -> tuple[np.ndarray, str]:
    """(N, D) float32 mean of the last hidden states of each text, and SHA-256 of the weights.

    A text is read alone, behind BOS where the tokenizer puts one, and ends with EOS; the mean is
    over the text and its EOS, so that an empty text has a vector too.
    """
    tokenizer = load_tokenizer(folder)
    plain, _ = detect_chat_format(folder, tokenizer, "none")
    model = load_model(folder, dtype, device).eval()
    end = tokenizer.special_id(plain.literal(plain.end))
    messages = [[{"role": "user", "content": text}] for text in texts]
    room = model.config.max_position_embeddings
    encoded = [[*ids, end][:room] for ids in encode_prompts(messages, plain, tokenizer)]
    if cut := sum(len(ids) == room for ids in encoded):
        print(f"embeddings: {cut} texts fill the model's positions; what is behind is not read")
    start = bos_length(plain, tokenizer)
    vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    with tqdm(total=len(texts), desc="embeddings", unit=" texts", leave=False) as bar:
        for rows in fill_forwards([len(ids) for ids in encoded]):
            vectors[rows] = mean_states(model, [encoded[row] for row in rows], start)
            bar.update(len(rows))
    return check_vectors(vectors, f"--embedding_model {folder}"), hash_weights(model)


def fill_forwards(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Which texts share a forward, in their order."""
    rows, used = [], 0
    for row, length in enumerate(lengths):
        if rows and used + length > PACKED_TOKENS:
            yield rows
            rows, used = [], 0
        rows.append(row)
        used += length
    if rows:
        yield rows


@torch.no_grad()
def mean_states(model: Transformer, texts: Sequence[list[int]], start: int) -> np.ndarray:
    """(n, D) from one packed forward over n texts; the first `start` tokens are not averaged."""
    ids = [id for text in texts for id in text]
    positions = [position for text in texts for position in range(len(text))]
    stops = np.cumsum([len(text) for text in texts]).tolist()
    spans = list(zip([0, *stops[:-1]], stops, strict=True))
    segments = [(begin, stop, begin, begin) for begin, stop in spans]
    device = model.norm.weight.device
    tensors = (torch.tensor(values, device=device) for values in (ids, positions))
    states = model.hidden_states(*tensors, segments).float()  # (T, D)
    return (
        torch.stack([states[begin + start : stop].mean(0) for begin, stop in spans]).cpu().numpy()
    )


def sentence_vectors(name: str, texts: Sequence[str], device: str) -> tuple[np.ndarray, str]:
    """(N, D) vectors of a sentence-transformers model, and SHA-256 of its weights.

    name: a folder, or a model that the package knows. Raises ImportError without the package.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "--sentence_encoder needs the package sentence-transformers: "
            "pip install sentence-transformers; or pass --embedding_model or --embeddings"
        ) from error
    encoder = SentenceTransformer(name, device=device)
    vectors = np.asarray(encoder.encode(list(texts), convert_to_numpy=True))
    digest = hashlib.sha256()
    for key, weight in encoder.state_dict().items():
        digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return check_vectors(vectors, f"--sentence_encoder {name}"), digest.hexdigest()
