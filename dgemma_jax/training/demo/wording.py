"""How a question is put: wordings seen in training, wordings kept for the test, and small surface changes.

A family holds `Wordings`; it draws one for the split, fills it, and sends it through `vary`, which sometimes
drops the final mark, contracts "What is", lowers the case, or adds "please" or a "Hi," in front.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo.example import Split


@dataclass(frozen=True)
class Wordings:
    """Templates of one question: those that are trained on and those that are only tested."""

    train: tuple[str, ...]
    test: tuple[str, ...]

    def draw(self, rng: Random, split: Split) -> str:
        """One template of the split."""
        return rng.choice(self.train if split == "train" else self.test)


def held_out(key: str, percent: int) -> bool:
    """Whether `key` belongs to the test split: a fixed property of the text, `percent` of all keys."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 100 < percent


CONTRACTIONS = (
    ("What is ", "What's "),
    ("Who is ", "Who's "),
    ("That is ", "That's "),
    ("I am ", "I'm "),
    ("do not ", "don't "),
)
OPENERS = ("Hi, ", "Hello, ", "Hey, ", "Okay, ")


def _contract(rng: Random, text: str) -> str:
    for long, short in CONTRACTIONS:
        text = text.replace(long, short)
    return text


def _lower_first(rng: Random, text: str) -> str:
    keep = text.startswith("I ") or text[:2].isupper()
    return text if keep else text[:1].lower() + text[1:]


def _lower_all(rng: Random, text: str) -> str:
    return text.lower()


def _change_end(rng: Random, text: str) -> str:
    """Without the final mark, or with it once more."""
    bare = text.rstrip(".?! ")
    return text + text[-1] if text[-1] in "?!" and rng.random() < 0.25 else bare


def _please(rng: Random, text: str) -> str:
    bare = text.rstrip(".?! ")
    if "please" in text.lower() or bare.endswith("="):
        return text
    end = text[len(bare) :]
    return f"{bare}, please{end}" if rng.random() < 0.5 or "?" in end else "Please " + _lower_first(rng, text)


def _open(rng: Random, text: str) -> str:
    return rng.choice(OPENERS) + _lower_first(rng, text)


PLAIN: tuple[Callable[[Random, str], str], ...] = (_contract, _lower_first, _lower_all, _change_end)
POLITE: tuple[Callable[[Random, str], str], ...] = (*PLAIN, _please, _open)


def vary(rng: Random, text: str, *, polite: bool = True) -> str:
    """`text` as another person would type it; unchanged half of the time.

    `polite` allows "please" and a greeting in front, which suit questions and requests but not statements.
    Fields in braces survive, so a template may be varied before its case-sensitive values are filled in.
    """
    if rng.random() < 0.5:
        return text
    for change in rng.sample(POLITE if polite else PLAIN, k=rng.choice((1, 1, 2))):
        text = change(rng, text)
    return text
