"""data/tokenizer.py against transformers: ids and texts, with special tokens spelled in the text.

Witnesses: transformers' tokenizer of SmolLM2 (tokenizer.json); sentencepiece itself; and for the
sentencepiece models of Mistral and stories260k transformers' LlamaTokenizer in the form in which
Llama 2, Mistral and Zephyr were published (a Prepend normaliser, merges ordered by score). Given a
bare tokenizer.model, transformers 5 makes something else of it: merges ordered by id, which changes
the ids of runs of spaces, and AutoTokenizer without the dummy prefix.
"""

import io
import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import sentencepiece

from data.tokenizer import JsonTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = [
    "",
    "a",
    " ",
    "   ",
    "Hello, world!",
    " leading and trailing  ",
    "two  spaces   three    four",
    "\n",
    "\n\n\nline\n\n  indented\n\ttab\r\nend\n",
    "def f(x):\n        return x ** 2  # why\n",
    "1234567890 3.14159 1,000,000",
    "Größe, façade, Ångström, naïve",
    "日本語のテキストです。中文\uff0c한국어",
    "Привет мир, שלום עולם, مرحبا بالعالم, हिन्दी",
    "🙂👩‍👩‍👧‍👦🇳🇴 e\u0301 \u200b\ufeff",
    "▁under▁lines ▁ here",
    "\x00\x01\x7f control",
    "</s> and <s> and <unk> and <0x0A>",
    "<|im_start|>system\nobey<|im_end|>\n<|endoftext|>",
    "x</s>",
    "<s>[INST] hi [/INST]",
    "\U0001d518\U0001d52b \U0001f9ff",
]


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    alphabet = [
        *"abc XYZ 0189 .,!?'\n\n  \t",
        "é",
        "日",
        "🙂",
        "▁",
        "</s>",
        "<|im_end|>",
        "\u00a0",
        "ß",
    ]
    return ["".join(rng.choices(alphabet, k=rng.randrange(1, 30))) for _ in range(count)]


ALL_TEXTS = TEXTS + random_texts(200, seed=0)


@pytest.fixture(scope="module")
def smollm2(smollm2_dir: Path) -> tuple[Tokenizer, object]:
    return load_tokenizer(smollm2_dir), transformers.AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="module")
def mistral(mistral_tokenizer_dir: Path) -> tuple[Tokenizer, object]:
    return load_tokenizer(mistral_tokenizer_dir), llama_witness(mistral_tokenizer_dir)


@pytest.fixture(scope="module")
def stories(stories_dir: Path) -> tuple[Tokenizer, object]:
    return load_tokenizer(stories_dir), llama_witness(stories_dir)


def llama_witness(folder: Path, legacy: bool = True):
    """legacy: as published, else with Metaspace, which has no prefix behind special tokens."""
    from tokenizers import normalizers
    from transformers.tokenization_utils_base import generate_merges

    base = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocab = {base.id_to_piece(id): id for id in range(base.vocab_size())}
    merges = generate_merges(vocab, {p: base.get_score(id) for p, id in vocab.items()})
    witness = transformers.LlamaTokenizer(
        vocab=vocab, merges=merges, legacy=legacy, add_bos_token=True
    )
    if legacy:
        prefix, spaces = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
        witness._tokenizer.normalizer = normalizers.Sequence([prefix, spaces])
        witness._tokenizer.pre_tokenizer = None
    return witness


def witness_ids(witness, texts: list[str]) -> list[list[int]]:
    return witness(texts, add_special_tokens=False, split_special_tokens=True).input_ids


# ---------------------------------------------------------------------------------------------
# the same ids as transformers
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smollm2", "mistral", "stories"])
def test_ids_equal_transformers(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer, witness = request.getfixturevalue(name)
    ids = [tokenizer.encode(text) for text in ALL_TEXTS]
    assert ids == witness_ids(witness, ALL_TEXTS)
    assert tokenizer.encode_batch(ALL_TEXTS, prefix=True) == ids


def test_ids_equal_sentencepiece(mistral: tuple) -> None:
    tokenizer, _ = mistral
    base = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.files[0]))
    assert [tokenizer.encode(text) for text in ALL_TEXTS] == base.encode(ALL_TEXTS)


@pytest.mark.parametrize("name", ["mistral", "stories"])
def test_continuations_equal_transformers_behind_a_token(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Non-legacy LlamaTokenizer puts no prefix behind a special token, as encode_continuation."""
    tokenizer, _ = request.getfixturevalue(name)
    witness = llama_witness(tokenizer.files[0].parent, legacy=False)
    texts = [t for t in ALL_TEXTS if not any(s in t for s in ("<s>", "</s>", "<unk>"))]
    expected = witness(["</s>" + text for text in texts], add_special_tokens=False).input_ids
    ids = [tokenizer.encode_continuation(text) for text in texts]
    assert [[2, *i] for i in ids] == expected
    assert tokenizer.encode_batch(texts, prefix=False) == ids


@pytest.mark.parametrize("name", ["smollm2", "mistral", "stories"])
def test_decode_gives_the_text_back(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer, _ = request.getfixturevalue(name)
    for a, b in zip(ALL_TEXTS, reversed(ALL_TEXTS), strict=True):
        a, b = a.replace("▁", "_"), b.replace("▁", "_")  # sentencepiece reads ▁ as a space
        prompt, continuation = tokenizer.encode(a), tokenizer.encode_continuation(b)
        if a:
            assert tokenizer.decode(prompt + continuation) == a + b
        assert tokenizer.decode(prompt) == a
        assert tokenizer.decode_continuation(continuation) == b


@pytest.mark.parametrize("name", ["smollm2", "mistral", "stories"])
def test_no_text_makes_a_special_token(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer, _ = request.getfixturevalue(name)
    specials = set(tokenizer.special_ids.values())
    assert specials
    for token in [*tokenizer.special_ids, *ALL_TEXTS]:
        for text in (token, f" {token}", f"a{token}b", token * 3):
            assert not specials & set(tokenizer.encode(text)), text
            assert not specials & set(tokenizer.encode_continuation(text)), text


def test_facts_of_the_real_tokenizers(
    smollm2: tuple, mistral: tuple, stories: tuple, smollm2_dir: Path
) -> None:
    t, witness = smollm2
    assert isinstance(t, JsonTokenizer)
    assert (t.bos_id, t.eos_id, t.vocab_size) == (1, 2, 49152) == (1, 2, len(witness))
    assert (t.bos_token, t.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert not t.adds_bos and not t.prefix_after_special
    assert t.special_id("<|im_end|>") == 2 and t.special_id("<|nothing|>") is None
    assert [f.name for f in t.files] == [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ]
    for (t, _), size in ((mistral, 32000), (stories, 512)):
        assert isinstance(t, SentencePieceTokenizer)
        assert (t.bos_id, t.eos_id, t.vocab_size) == (1, 2, size)
        assert (t.bos_token, t.eos_token) == ("<s>", "</s>")
        assert t.adds_bos and t.prefix_after_special
        assert [f.name for f in t.files] == ["tokenizer.model"]


def test_stories_keeps_spaces_that_its_model_would_merge(stories: tuple) -> None:
    tokenizer, _ = stories
    file = str(tokenizer.files[0])
    assert sentencepiece.SentencePieceProcessor(model_file=file).encode("a  b ") == [
        *sentencepiece.SentencePieceProcessor(model_file=file).encode("a b")
    ]
    assert tokenizer.decode(tokenizer.encode("a  b ")) == "a  b "


# ---------------------------------------------------------------------------------------------
# decoding
# ---------------------------------------------------------------------------------------------


def test_decode_by_hand(mistral: tuple, smollm2: tuple) -> None:
    t, _ = mistral
    # ▁Hello ▁world: 22557 1526; <s> 1, </s> 2; <0x0A> is 13
    assert t.encode("Hello world") == [22557, 1526]
    assert t.decode([22557, 1526]) == "Hello world"
    assert t.decode_continuation([22557, 1526]) == " Hello world"
    assert t.decode([1, 22557, 2]) == "Hello"
    assert t.decode([1, 22557, 2, 1526]) == "Helloworld"  # the prefix behind </s> is not content
    assert t.decode([1, 22557, 13]) == "Hello\n"
    assert t.decode([]) == t.decode([1]) == ""
    assert t.decode([22557, 40000, 1526]) == "Hello\ufffd world"
    assert t.decode([0]) == "\ufffd"  # <unk> stands for text that is not known
    assert t.decode([*t.encode("a▁b"), *t.encode_continuation("▁c")]) == "a b c"
    with pytest.raises(ValueError, match="expected token ids, got -1"):
        t.decode([22557, -1])
    s, _ = smollm2
    assert s.decode([1, *s.encode("hi"), 2]) == "hi"
    assert s.decode([*s.encode("a▁b"), *s.encode_continuation("▁c")]) == "a▁b▁c"
    assert s.decode([*s.encode("hi"), 60000]) == "hi\ufffd"


@pytest.mark.parametrize("name", ["smollm2", "mistral", "stories"])
def test_decode_of_half_a_character(name: str, request: pytest.FixtureRequest) -> None:
    """🙂 is four bytes, the tokens of which these tokenizers do not merge into one."""
    tokenizer, _ = request.getfixturevalue(name)
    ids = tokenizer.encode_continuation("\U0001f9ff")
    assert len(ids) > 1
    assert tokenizer.decode(ids) == "\U0001f9ff"
    half = tokenizer.decode([*tokenizer.encode("ok"), *ids[:-1]])
    assert half.startswith("ok\ufffd") and half.removeprefix("ok").strip("\ufffd") == ""


# ---------------------------------------------------------------------------------------------
# tokens that a checkpoint's files add
# ---------------------------------------------------------------------------------------------


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, mistral_tokenizer_dir: Path) -> Path:
    shutil.copy(mistral_tokenizer_dir / "tokenizer.model", tmp_path)
    return tmp_path


def test_added_special_tokens(folder: Path) -> None:
    """ChatML tokens added to a Llama tokenizer: in added_tokens.json, or in the config."""
    write_json(folder / "added_tokens.json", {"<|im_end|>": 32000, "<|im_start|>": 32001})
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>", "bos_token": "<s>"})
    t = load_tokenizer(folder)
    assert (t.special_id("<|im_start|>"), t.special_id("<|im_end|>")) == (32001, 32000)
    assert (t.bos_id, t.eos_id, t.vocab_size) == (1, 32000, 32002)
    plain = t.encode("<|im_start|>user")
    assert max(plain) < 32000 and t.decode(plain) == "<|im_start|>user"
    assert t.decode([32001, *plain, 32000]) == "<|im_start|>user"

    (folder / "added_tokens.json").unlink()
    decoder = {"32000": {"content": "<pad>", "special": True}}
    decoder["32001"] = {"content": "<tool>", "special": False}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    t = load_tokenizer(folder)
    assert t.special_id("<pad>") == 32000 and t.special_id("<tool>") is None
    assert 32000 not in t.encode("a<pad>b")
    witness = llama_witness(folder)
    witness.add_special_tokens({"pad_token": "<pad>"})
    word = transformers.AddedToken("<tool>", normalized=False)
    witness.add_tokens([word])  # an added word that is not special is found in text
    texts = ["a <tool> b", "<tool>", "<tool><tool> x", "y<tool>z"]
    assert [t.encode(text) for text in texts] == witness_ids(witness, texts)
    assert 32001 in t.encode("a <tool> b")
    assert t.decode(t.encode("a<tool>")) == "a<tool>"


def test_user_defined_symbols_stay_text_where_they_are_special(tmp_path: Path) -> None:
    """sentencepiece itself would turn <|im_start|> into the token; <tab> is a word like others."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world, this is a test of things"] * 50),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["<|im_start|>", "<tab>", "<sep>"],
        control_symbols=["<|im_end|>"],
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    write_json(tmp_path / "special_tokens_map.json", {"sep_token": {"content": "<sep>"}})
    base = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    t = load_tokenizer(tmp_path)
    start = base.piece_to_id("<|im_start|>")
    assert start in base.encode("a <|im_start|> b")
    assert t.special_id("<|im_start|>") == start
    assert t.special_id("<|im_end|>") == base.piece_to_id("<|im_end|>")
    assert t.special_id("<sep>") == base.piece_to_id("<sep>")
    assert t.special_id("<tab>") is None
    assert base.piece_to_id("<tab>") in t.encode("a<tab>b")
    text = "hello <|im_start|><|im_start|>user <sep><|im_end|> </s>"
    for ids in (t.encode(text), t.encode_batch(["x"] * 20 + [text], prefix=False)[-1]):
        assert not set(ids) & set(t.special_ids.values())
    assert t.decode(t.encode(text)) == text
    assert t.encode("hello <unk> world") == base.encode("hello <unk> world")


def test_bos_and_eos_precedence(folder: Path) -> None:
    """tokenizer_config > special_tokens_map > the sentencepiece model; add_bos_token."""
    write_json(folder / "config.json", {"bos_token_id": 5, "eos_token_id": 6})
    assert (load_tokenizer(folder).bos_id, load_tokenizer(folder).eos_id) == (1, 2)
    write_json(folder / "special_tokens_map.json", {"eos_token": {"content": "<s>"}})
    assert load_tokenizer(folder).eos_id == 1
    write_json(folder / "tokenizer_config.json", {"eos_token": "<unk>", "add_bos_token": False})
    write_json(folder / "special_tokens_map.json", {"eos_token": "<s>", "unk_token": "<unk>"})
    t = load_tokenizer(folder)
    assert t.eos_id == 0 and t.bos_id == 1 and not t.adds_bos
    write_json(folder / "tokenizer_config.json", {"eos_token": "<end>"})
    with pytest.raises(ValueError, match=r"tokenizer_config.json: eos_token '<end>' is not in"):
        load_tokenizer(folder)


def test_ids_of_the_models_configuration(tmp_path: Path, smollm2_dir: Path) -> None:
    """A tokenizer.json names no BOS; config.json and then generation_config.json do, by number."""
    shutil.copy(smollm2_dir / "tokenizer.json", tmp_path)
    t = load_tokenizer(tmp_path)
    assert t.bos_id is None and t.eos_id is None and not t.adds_bos
    write_json(tmp_path / "config.json", {"eos_token_id": [2, 0]})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": 0, "bos_token_id": 1})
    t = load_tokenizer(tmp_path)
    assert (t.bos_id, t.eos_id, t.eos_token) == (1, 2, "<|im_end|>")
    write_json(tmp_path / "config.json", {"eos_token_id": 123456})
    assert load_tokenizer(tmp_path).eos_id is None


# ---------------------------------------------------------------------------------------------
# Llama's tokenizer as tokenizer.json
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [True, False])
def test_tokenizer_json_of_llama_equals_tokenizer_model(
    legacy: bool, mistral_tokenizer_dir: Path, tmp_path: Path
) -> None:
    """As published (Prepend), and as transformers 5 saves it (Metaspace).

    Metaspace has no prefix where a text begins with a space, sentencepiece and Prepend have.
    """
    llama_witness(mistral_tokenizer_dir, legacy=legacy).save_pretrained(tmp_path)
    model, saved = load_tokenizer(mistral_tokenizer_dir), load_tokenizer(tmp_path)
    assert isinstance(saved, JsonTokenizer)
    assert saved.prefix_after_special == legacy and saved.adds_bos
    assert (saved.bos_id, saved.eos_id, saved.vocab_size) == (1, 2, 32000)
    in_front = (" ", "▁")
    texts = [t for t in ALL_TEXTS if legacy or not t.startswith(in_front)]
    compare_tokenizers(saved, model, texts)


def compare_tokenizers(a: Tokenizer, b: Tokenizer, texts: list[str]) -> None:
    assert a.encode_batch(texts, prefix=True) == b.encode_batch(texts, prefix=True)
    assert a.encode_batch(texts, prefix=False) == b.encode_batch(texts, prefix=False)
    for text in texts:
        ids = a.encode(text)
        assert a.decode([1, *ids, 2]) == b.decode([1, *ids, 2])
        assert a.decode_continuation(ids) == b.decode_continuation(ids)


def test_prefix_after_special_of_a_model_file(folder: Path, tmp_path: Path) -> None:
    assert load_tokenizer(folder).prefix_after_special
    write_json(folder / "tokenizer_config.json", {"legacy": False})
    assert not load_tokenizer(folder).prefix_after_special
    scheme = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    write_json(folder / "tokenizer.json", {"pre_tokenizer": scheme, "model": {}})
    assert load_tokenizer(folder).prefix_after_special  # tokenizer.json says more than legacy
    scheme["prepend_scheme"] = "first"
    write_json(folder / "tokenizer.json", {"pre_tokenizer": scheme, "model": {}})
    assert not load_tokenizer(folder).prefix_after_special


def test_truncation_and_padding_of_tokenizer_json_are_ignored(
    smollm2_dir: Path, tmp_path: Path
) -> None:
    spec = json.loads((smollm2_dir / "tokenizer.json").read_text(encoding="utf-8"))
    spec["truncation"] = {
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    write_json(tmp_path / "tokenizer.json", spec)
    text = "one two three four five"
    assert load_tokenizer(tmp_path).encode(text) == load_tokenizer(smollm2_dir).encode(text)


def test_added_words_of_tokenizer_json_behave_as_in_transformers(
    smollm2_dir: Path, tmp_path: Path
) -> None:
    witness = transformers.AutoTokenizer.from_pretrained(smollm2_dir)
    witness.add_tokens(["<think>", "<|odd|>"])  # not special; the second is by its spelling
    witness.save_pretrained(tmp_path)
    t = load_tokenizer(tmp_path)
    texts = ["a <think> b", "<think>\n", "x<think><think>"]
    assert [t.encode(text) for text in texts] == witness_ids(witness, texts)
    assert 49152 in t.encode("a <think> b") and t.special_id("<think>") is None
    assert t.decode(t.encode("a <think> b")) == "a <think> b"
    assert t.special_id("<|odd|>") == 49153 not in t.encode("a <|odd|> b")
    assert t.vocab_size == 49154


# ---------------------------------------------------------------------------------------------
# files that are not what they should be
# ---------------------------------------------------------------------------------------------


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer.model or a tokenizer.json"):
        load_tokenizer(tmp_path)
    for content in (b"", b"garbage" * 9, b"IQ== 0\nIg== 1\n"):  # the last one: tiktoken's form
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(ValueError, match=r"tokenizer.model: expected a sentencepiece model"):
            load_tokenizer(tmp_path)
        with pytest.raises(ValueError, match="expected a sentencepiece model"):
            load_tokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").unlink()
    for content, message in (
        ("{", "not JSON"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "expected a tokenizer.json with a model"),
        ('{"model": {"type": "BPE"}}', "expected a tokenizer.json, got"),
    ):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=f"tokenizer.json: {message}"):
            load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a tokenizer"):
        (tmp_path / "notes.txt").write_text("x")
        load_tokenizer(tmp_path / "notes.txt")


def test_the_largest_id_is_that_of_an_int32(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "unk_token": "a"}
    write_json(tmp_path / "tokenizer.json", {"model": model | {"vocab": {"a": 0, "b": 2**31 - 1}}})
    assert load_tokenizer(tmp_path).vocab_size == 2**31
    write_json(tmp_path / "tokenizer.json", {"model": model | {"vocab": {"a": 0, "b": 2**31}}})
    with pytest.raises(ValueError, match="expected ids from 0 to 2147483647, got 2 tokens with"):
        load_tokenizer(tmp_path)


def test_tokenizer_json_stands_in_for_a_tiktoken_file(smollm2_dir: Path, tmp_path: Path) -> None:
    """As in Llama 3: tokenizer.model is something else, tokenizer.json is used."""
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    shutil.copy(smollm2_dir / "tokenizer.json", tmp_path)
    assert load_tokenizer(tmp_path).encode("Hello") == load_tokenizer(smollm2_dir).encode("Hello")


def test_one_file_by_itself(smollm2_dir: Path, mistral_tokenizer_dir: Path) -> None:
    t = load_tokenizer(mistral_tokenizer_dir / "tokenizer.model")
    assert t.encode("Hello world") == [22557, 1526] and t.eos_id == 2
    assert load_tokenizer(smollm2_dir / "tokenizer.json").special_id("<|im_end|>") == 2


def test_absent_package_is_named(smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"tokenizer.json needs .* pip install 'tokenizers"):
        load_tokenizer(smollm2_dir)
