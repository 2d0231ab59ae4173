"""Words that tools are made of: verbs and nouns of their names, and made-up words, split into train and test.

Made-up words teach copying: a tool called `get_zumo` can only be called by reading its name in the prompt. Training
also has words of other forms than those of the test, which the tokenizer cuts into more, and rarer, pieces.
"""

from random import Random

from dgemma_jax.training.demo.example import Split
from dgemma_jax.training.demo.names import TEST_NAMES, TRAIN_NAMES, wild_word
from dgemma_jax.training.demo.wording import held_out

VERBS: dict[str, tuple[str, ...]] = {
    "get": ("show me", "give me"),
    "find": ("look for", "search for"),
    "book": ("reserve",),
    "send": (),
    "play": ("put on",),
    "set": ("set up",),
    "start": ("turn on",),
    "stop": ("turn off",),
    "open": (),
    "read": (),
    "buy": (),
    "order": (),
    "cancel": (),
    "track": ("follow",),
    "check": (),
    "create": ("make",),
    "delete": ("remove",),
    "update": ("change",),
    "add": (),
    "convert": (),
}
"""Verbs of tool names, each with other ways to ask for it."""

_NOUNS = """weather time news price book film song album alarm timer table room ticket hotel flight train taxi car
    bike mail message letter note list calendar meeting event task photo map route street parcel order bill
    account card money numbers person user doctor shop menu recipe meal pizza coffee game score team match
    word file folder page report light lamp door heater radio camera plant invoice"""
NOUNS = tuple(_NOUNS.split())

QUALIFIERS = ("current", "new", "my", "local", "next")

_WORDS = """sunny rainy cloudy windy cold warm hot wet dry fast slow small large open closed full empty happy sad
    early late ready broken free busy loud quiet fresh old young soft hard bread milk cheese apple banana
    rice soup salad tea juice chair desk shirt shoes hat coat river forest beach island mountain garden
    bridge castle museum park history music art sport science travel cooking poetry chess football tennis
    jazz rock piano guitar"""
ORDINARY_WORDS = tuple(_WORDS.split())
"""Words for values and results; none of them is a noun of a tool, so that a value never names a tool."""

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "tr", "st", "pl")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "", "n", "r", "l", "s", "m")
_NAMES = (name.lower() for name in (*TRAIN_NAMES, *TEST_NAMES))
_REAL = frozenset((*VERBS, *NOUNS, *QUALIFIERS, *ORDINARY_WORDS, *_NAMES))


def belongs(key: str, split: Split) -> bool:
    """Whether the thing that `key` names is one for the split: one in ten is only tested."""
    return held_out(f"tool {key}", 10) == (split == "test")


def draw_made_up(rng: Random, split: Split, *, plain: bool = False) -> str:
    """A word in lower case that is no word of the lists here and no name.

    It has two plain syllables; half of those that training draws are wild, unless `plain`.
    """
    wild = split == "train" and not plain and rng.random() < 0.5
    while True:
        word = wild_word(rng) if wild else _plain_word(rng)
        if word not in _REAL and belongs(word, split):
            return word


def _plain_word(rng: Random) -> str:
    word = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_ONSETS) + rng.choice(_VOWELS)
    return word + rng.choice(_CODAS)


def draw_similar(rng: Random, word: str, split: Split) -> str:
    """A made-up word that begins or ends as the made-up `word` does."""
    while True:
        other = draw_made_up(rng, split)
        cut, cut_other = _first_syllable(word), _first_syllable(other)
        similar = rng.choice((word[:cut] + other[cut_other:], other[:cut_other] + word[cut:]))
        if similar != word and similar not in _REAL and belongs(similar, split):
            return similar


def _first_syllable(word: str) -> int:
    return next(place + 1 for place, letter in enumerate(word) if letter in _VOWELS)


def draw_word(rng: Random, split: Split) -> str:
    """A word for a value: from the list or made up."""
    if rng.random() < 0.4:
        return draw_made_up(rng, split)
    return rng.choice(_ORDINARY[split])


_ORDINARY: dict[Split, tuple[str, ...]] = {
    "train": tuple(word for word in ORDINARY_WORDS if belongs(word, "train")),
    "test": tuple(word for word in ORDINARY_WORDS if belongs(word, "test")),
}
