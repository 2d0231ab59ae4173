"""The three kinds of tokenizer a checkpoint may ship, each trained on a few sentences into a folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from dgemma_jax.prompt.tokenizer import CHAT_TOKENS, MEDIA_TOKENS, Tokenizer

# The same examples on every run, and none fails because the machine was busy.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

SENTENCES = [
    "The sky is blue because of Rayleigh scattering.",
    "user model thought call response declaration get_weather city value",
    "Paris is the capital of France, and 12 + 30 is 42.",
    "Grüße aus Köln, 東京は日本の首都です, привет мир.",
    'call:get_weather{city:Paris,days:3} {"a": [1, 2.5, true, null]}\n\n',
]
MARKERS = [*CHAT_TOKENS, *MEDIA_TOKENS]


def byte_level_json(markers: list[str]) -> tokenizers.Tokenizer:
    """A byte-level BPE, as the demo checkpoint has it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=markers, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def byte_fallback_json() -> tokenizers.Tokenizer:
    """A BPE over characters with byte fallback and "▁" for spaces, as the published checkpoint has it."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    names = [*MARKERS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    model = models.BPE(
        vocab={name: index for index, name in enumerate(names)},
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([*MARKERS, "<unk>"])
    return tokenizer


def sentencepiece_model(**settings: object) -> bytes:
    """A SentencePiece model as DeepMind's release has it: <bos> is a control piece, <|turn> a user-defined one."""
    written = io.BytesIO()
    defaults: dict[str, object] = {"add_dummy_prefix": False, "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=written,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        user_defined_symbols=[name for name in MARKERS if name not in ("<pad>", "<eos>", "<bos>")] + ["\n", "\n\n"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=2,
        **(defaults | settings),
    )
    return written.getvalue()


@pytest.fixture(scope="session")
def train_byte_level() -> Callable[[list[str]], tokenizers.Tokenizer]:
    return byte_level_json


@pytest.fixture(scope="session")
def train_sentencepiece() -> Callable[..., bytes]:
    return sentencepiece_model


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte_level")
    byte_level_json(MARKERS).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def byte_fallback_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte_fallback")
    byte_fallback_json().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return folder


@pytest.fixture(scope="session")
def byte_level(byte_level_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(byte_level_folder)


@pytest.fixture(scope="session", params=["byte_level", "byte_fallback", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_folder(request.getfixturevalue(f"{request.param}_folder"))
