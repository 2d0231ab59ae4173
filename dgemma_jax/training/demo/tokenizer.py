"""The demo model's tokenizer: byte-level BPE on the generator's own text, with Gemma 4's special strings.

    " Oslo."  ->  " Oslo" "."          a word of a closed set is one token, with and without the space in front
    " Rune"   ->  " " "R" "un" "e"     any other word is split alike with and without the space: copying stays simple

All 256 bytes are tokens, so any text comes back unchanged; digits stand alone. No merge crosses a space.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dgemma_jax.training.demo import capitals, facts, json_text, names
from dgemma_jax.training.demo.example import Example
from dgemma_jax.training.demo.mix import example

SPECIAL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
    "<|think|>",
    "<|channel>",
    "<channel|>",
    "<|turn>",
    "<turn|>",
    "<|image>",
    "<image|>",
    "<|image|>",
    "<|video|>",
    "<|audio>",
    "<audio|>",
    "<|audio|>",
)
"""Special strings in the order of their ids, from 0."""

TEMPLATE_WORDS = (
    "system",
    "user",
    "model",
    "thought",
    "declaration",
    "call",
    "response",
    "STRING",
    "INTEGER",
    "BOOLEAN",
    "OBJECT",
)
MODEL_MAX_LENGTH = 2048
_SAMPLE = 20_000
_SEED = 0
_WORDS = 770
_ANSWER_WEIGHT = 8


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1280, *, words: Collection[str] = ()) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries: special tokens, 256 bytes, merges learned from `texts`, `words`.

    Each of `words` becomes a single ordinary token, without taking entries for the steps that would merge into it.

    Raises:
        ValueError: if `words` leave no room for the bytes, or a word spans more than one piece of split text.
    """
    pieces = {_single_piece(word) for word in words}
    room = vocab_size - len(pieces)
    if room < len(SPECIAL_TOKENS) + 256:
        raise ValueError(f"vocab_size {vocab_size} cannot hold {len(pieces)} words, 256 bytes and the special tokens")
    merge_texts = list(_texts_without(texts, pieces))
    vocab, merges = _learn_merges(merge_texts, room)
    # A word that the merges also build frees an entry for one more merge.
    while len(vocab) == room and (spare := vocab_size - len(vocab.keys() | pieces)):
        room += spare
        vocab, merges = _learn_merges(merge_texts, room)
    for piece in sorted(pieces):
        vocab.setdefault(piece, len(vocab))
    # ignore_merges: a piece that is an entry as a whole is taken as it is, so words need no merges of their own.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = _split_text()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    return tokenizer


def write_tokenizer(folder: str | Path) -> Tokenizer:
    """Train on a fixed sample of the generator's text; write tokenizer.json and tokenizer_config.json into `folder`."""
    conversations = sample()
    words = frequent_words(conversations, _WORDS)
    tokenizer = train_tokenizer((text for drawn in conversations for text, _ in texts(drawn)), words=words)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MODEL_MAX_LENGTH,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def sample() -> list[Example]:
    """The fixed sample of the training split that the tokenizer is trained on."""
    return [example("train", _SEED, index) for index in range(_SAMPLE)]


def texts(drawn: Example) -> Iterator[tuple[str, bool]]:
    """Every text of a conversation, and whether the model writes it: contents, thoughts, calls and declarations."""
    for message in drawn.messages:
        written = message["role"] == "assistant"
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        for text in (*parts, message.get("reasoning", "")):
            yield text, written
        for called in message.get("tool_calls", ()):
            yield from ((text, True) for text in _strings(called["function"]))
    yield from ((text, False) for text in _strings(drawn.tools or []))


def _strings(value: Any) -> Iterator[str]:
    """The keys and texts inside a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def closed_words() -> list[str]:
    """Words of closed sets that answers pick from, in the places where they occur: at the start, after a space."""
    one_word = [country.capital for country in capitals.COUNTRIES if " " not in country.capital]
    anywhere = [*one_word, *facts.DAYS, *facts.MONTHS, *facts.PLANETS, *json_text.COLOURS, *json_text.ANIMALS]
    at_start = [word.capitalize() for word in (*json_text.COLOURS, *facts.SEASONS)]
    after_space = [*facts.SEASONS, *(word for c in capitals.COUNTRIES for word in f"{c.name} {c.capital}".split())]
    after_space += [word.upper() for word in after_space]
    words = [*TEMPLATE_WORDS, *anywhere, *at_start, *(f" {word}" for word in (*anywhere, *after_space))]
    return list(dict.fromkeys(words))


def frequent_words(sample: Iterable[Example], count: int) -> list[str]:
    """The closed words, filled up to `count` with frequent pieces of `sample` that are no name, answers first."""
    split = _split_text()
    counts: Counter[str] = Counter()
    for drawn in sample:
        for text, written in texts(drawn):
            for piece, _ in split.pre_tokenize_str(text):
                counts[piece] += _ANSWER_WEIGHT if written else 1
    people = {name.lower() for name in (*names.TRAIN_NAMES, *names.TEST_NAMES)}
    by_count = sorted(counts, key=lambda piece: (-counts[piece], piece))
    ordinary = (p.replace("Ġ", " ") for p in by_count if len(p) > 1 and p.strip("Ġ").lower() not in people)
    return list(islice(dict.fromkeys([*closed_words(), *ordinary]), count))


def _split_text() -> pre_tokenizers.PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _single_piece(word: str) -> str:
    """`word` in the byte alphabet of the vocabulary."""
    pieces = _split_text().pre_tokenize_str(word)
    if len(pieces) != 1:
        raise ValueError(f"{word!r} cannot be one token: text is split into {[piece for piece, _ in pieces]}")
    return pieces[0][0]


def _texts_without(texts: Iterable[str], pieces: Collection[str]) -> Iterator[str]:
    """What is left of `texts` for merges to learn from once the words that are tokens anyway are taken out."""
    split = _split_text()
    for text in texts:
        for piece, (start, end) in split.pre_tokenize_str(text):
            if piece not in pieces:
                yield text[start:end].strip()


def _learn_merges(texts: Iterable[str], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of plain BPE that never joins a space to what follows."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s"), "isolated"), _split_text()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    state = json.loads(learner.to_str())["model"]
    return state["vocab"], [(left, right) for left, right in state["merges"]]
