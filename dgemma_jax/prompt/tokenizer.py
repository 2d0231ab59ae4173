"""Text to token ids and back: one interface, `Tokenizer`, over the two files a checkpoint folder may hold.

    tokenizer.json  (Hugging Face: byte-fallback or byte-level BPE) --+
                                                                      +--> Tokenizer --> ids --> token_bytes --> text
    tokenizer.model (SentencePiece, as in DeepMind's release)       --+

Ids are looked up by string, never hard-coded. Every id stands for fixed bytes, so decoding is joining bytes: that is
what makes incremental decoding exact and lets an API report the bytes of one token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers

CHAT_TOKENS: tuple[str, ...] = (
    "<bos>",
    "<eos>",
    "<pad>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
)
"""The markers that the prompt format and the response parser cannot do without."""

MEDIA_TOKENS: tuple[str, ...] = ("<|image>", "<|image|>", "<image|>", "<|video|>")
"""Image open, image soft token, image close, video soft token: present in checkpoints that see."""

AUDIO_TOKENS: tuple[str, ...] = ("<|audio>", "<|audio|>", "<audio|>")
"""Audio open, audio soft token, audio close: no model here hears."""

# Markers that a SentencePiece model holds but does not tell apart from ordinary user-defined pieces like "\n\n".
_OTHER_MARKERS = ("<unk>", "<mask>", *AUDIO_TOKENS)

GUARD = "\ufdd0"
"""Cuts a marker that a user wrote, so that it is no marker any more; a Unicode noncharacter, never real text."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenizerError(ValueError):
    """A tokenizer that is absent, unreadable, unsupported, or lacks a token the project needs."""


class _Reader(Protocol):
    """What differs between the two files."""

    pieces: tuple[bytes, ...]
    special_tokens: dict[str, int]

    def encode(self, text: str) -> list[int]: ...

    def find(self, token: str) -> int | None: ...


class Tokenizer:
    """Encodes and decodes text. Immutable after construction and safe to use from several threads."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._pieces = reader.pieces
        self.vocab_size: int = len(reader.pieces)
        self.special_tokens: Mapping[str, int] = dict(reader.special_tokens)
        self.special_ids: frozenset[int] = frozenset(self.special_tokens.values())
        self.longest_token: int = max(map(len, reader.pieces), default=0)
        """Most bytes that one id stands for: n bytes of text are at least n / longest_token ids."""
        self._special_pattern = _alternatives(self.special_tokens)
        self._marker_beginnings = frozenset(
            token[:size] for token in self.special_tokens for size in range(1, len(token))
        )
        self._longest_beginning = max(map(len, self._marker_beginnings), default=0)

    def __deepcopy__(self, memo: dict[int, object]) -> Tokenizer:
        """Itself: what is copied around it, such as a parser in the middle of an answer, may share it."""
        return self

    @classmethod
    def from_folder(cls, path: Path) -> Tokenizer:
        """Read `tokenizer.json`, or else `tokenizer.model`, from a checkpoint folder.

        Raises `TokenizerError` when the folder holds neither, or when the file cannot be read.
        """
        path = Path(path)
        readers: dict[str, Callable[[Path], _Reader]] = {
            "tokenizer.json": _HuggingFaceReader,
            "tokenizer.model": _SentencePieceReader,
        }
        for name, reader in readers.items():
            if (path / name).is_file():
                return cls(reader(path / name))
        raise TokenizerError(f"no tokenizer in {path}: wanted {' or '.join(readers)}")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Special tokens written in it become single ids; nothing (no `<bos>`) is added."""
        return self._reader.encode(_without_surrogates(text))

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` with no special token among them: markers written in it are spelled out as ordinary text."""
        return self._encode_chunks(self._split_markers(text))

    def guard(self, text: str) -> str:
        """`text` with every marker in it broken by `GUARD`, and a marker that its end only begins.

        So guarded texts form no marker side by side either, and none with what a template writes after them; nor when
        the template trims them first. Only `encode_guarded` may encode the result.
        """
        body = text.replace(GUARD, "")
        body, space = (body, "") if self._begins_marker(body) else _cut_space(body)
        guarded = GUARD.join(self._split_markers(body))
        return guarded + (GUARD if self._begins_marker(body) else "") + space

    def encode_guarded(self, text: str) -> list[int]:
        """Ids of a prompt assembled from markers of ours and `guard`ed text of users; the guards leave no trace."""
        return self._encode_chunks(text.split(GUARD))

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Text of `ids`. Bytes that are no UTF-8 become U+FFFD; ids outside the vocabulary stand for nothing."""
        skip = self.special_ids if skip_special_tokens else frozenset()
        return b"".join(self.token_bytes(index) for index in ids if index not in skip).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for, possibly a part of a character; empty for an id outside the vocabulary."""
        return self._pieces[token_id] if 0 <= token_id < self.vocab_size else b""

    def token_id(self, token: str) -> int:
        """The id of a token given by its exact string. Raises `TokenizerError` when there is no such token."""
        found = self._reader.find(token)
        if found is None:
            raise TokenizerError(f"the tokenizer has no token {token!r}")
        return found

    def require(self, tokens: Iterable[str] = CHAT_TOKENS) -> None:
        """Raise one `TokenizerError` naming every token of `tokens` that is not a special token here."""
        missing = [token for token in tokens if token not in self.special_tokens]
        if missing:
            raise TokenizerError(f"the tokenizer lacks the special tokens {', '.join(missing)}")

    def _begins_marker(self, text: str) -> bool:
        """Whether some end of `text` is the beginning of a marker."""
        sizes = range(1, min(self._longest_beginning, len(text)) + 1)
        return any(text[-size:] in self._marker_beginnings for size in sizes)

    def _split_markers(self, text: str) -> list[str]:
        """Cut `text` inside each marker, after its first character, so that no piece holds a marker."""
        pieces, start = [], 0
        while found := self._special_pattern.search(text, start):
            pieces.append(text[start : found.start() + 1])
            start = found.start() + 1
        return [*pieces, text[start:]]

    def _encode_chunks(self, chunks: Iterable[str]) -> list[int]:
        return list(chain.from_iterable(self.encode(chunk) for chunk in chunks if chunk))


class _HuggingFaceReader:
    """`tokenizer.json` through the `tokenizers` package."""

    def __init__(self, file: Path) -> None:
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises bare Exception
            raise TokenizerError(f"cannot read {file}: {error}") from error
        # A file may ask for truncation or padding of training batches; a prompt must come through whole.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        wanted = {*CHAT_TOKENS, *MEDIA_TOKENS}
        self.special_tokens: dict[str, int] = {
            token.content: index for index, token in added.items() if token.special or token.content in wanted
        }
        self.pieces = _huggingface_pieces(tokenizer, file)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def find(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)


class _SentencePieceReader:
    """`tokenizer.model` through the `sentencepiece` package."""

    def __init__(self, file: Path) -> None:
        model = sentencepiece.SentencePieceProcessor()
        try:
            model.LoadFromSerializedProto(file.read_bytes())
        except (RuntimeError, OSError) as error:
            raise TokenizerError(f"cannot read {file}: {error}") from error
        if model.normalize(" a  b ") != "▁a▁▁b▁":
            raise TokenizerError(
                f"{file} changes spaces: it must be trained with add_dummy_prefix=false, remove_extra_whitespaces=false"
            )
        self._model = model
        names = [model.id_to_piece(index) for index in range(model.get_piece_size())]
        known = {*CHAT_TOKENS, *MEDIA_TOKENS, *_OTHER_MARKERS}
        self.special_tokens: dict[str, int] = {
            name: index for index, name in enumerate(names) if name in known or model.is_control(index)
        }
        self.pieces = tuple(
            bytes([int(name[3:5], 16)]) if model.is_byte(index) else name.replace("▁", " ").encode()
            for index, name in enumerate(names)
        )
        self._boundaries = _alternatives(self.special_tokens, keep=True)

    def encode(self, text: str) -> list[int]:
        # SentencePiece knows user-defined pieces in a text but not control pieces (<bos>): split at both ourselves.
        ids: list[int] = []
        for part in filter(None, self._boundaries.split(text)):
            index = self.special_tokens.get(part)
            ids.extend(self._model.encode(part) if index is None else [index])
        return ids

    def find(self, token: str) -> int | None:
        index = self._model.piece_to_id(token)
        return index if self._model.id_to_piece(index) == token else None


def _alternatives(tokens: Iterable[str], *, keep: bool = False) -> re.Pattern[str]:
    """A pattern for any of `tokens`, the longest first; with `keep`, `split` returns the tokens too."""
    longest_first = sorted(tokens, key=len, reverse=True)
    body = "|".join(map(re.escape, longest_first)) or "(?!)"  # (?!) never matches
    return re.compile(f"({body})" if keep else body)


def _cut_space(text: str) -> tuple[str, str]:
    """`text` without the white space at its end, and that white space."""
    body = text.rstrip()
    return body, text[len(body) :]


def _without_surrogates(text: str) -> str:
    """Lone surrogates (JSON allows them, UTF-8 does not) as U+FFFD; all other text unchanged."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _huggingface_pieces(tokenizer: tokenizers.Tokenizer, file: Path) -> tuple[bytes, ...]:
    """The bytes of every id, by the rule that the file's decoder describes."""
    to_bytes = _piece_rule(tokenizer.decoder, file)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for piece, index in vocabulary.items():
        pieces[index] = to_bytes(piece)
    return tuple(pieces)


def _piece_rule(decoder: Any, file: Path) -> Callable[[str], bytes]:
    state: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder is not None else {"type": "none"}
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps if step["type"] != "Fuse"]
    if kinds == ["ByteLevel"]:
        return _byte_level_bytes
    literal = all(step["type"] != "Replace" or "String" in step["pattern"] for step in steps)
    if literal and kinds and set(kinds) <= {"Replace", "ByteFallback"}:
        replacements = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"]
        return lambda piece: _byte_fallback_bytes(piece, replacements)
    raise TokenizerError(f"{file} has the decoder {kinds}; supported are ByteLevel, and Replace + ByteFallback")


def _byte_fallback_bytes(piece: str, replacements: Iterable[tuple[str, str]]) -> bytes:
    if found := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    for old, new in replacements:
        piece = piece.replace(old, new)
    return piece.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level BPE: itself if printable, else one from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()


def _byte_level_bytes(piece: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
    except KeyError:  # an added token is stored as its own text
        return piece.encode()
