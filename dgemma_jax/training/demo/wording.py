"""How a question is put, and which questions are kept for the test.

    opening        core                            ending
    "Hey DGemma, " "What is the colour of snow?"  ", please?"   ->  "hey dgemma, what's the colour of snow, please?"

A family makes questions from wordings and values and sends each through `vary`. What is trained on and what is only
tested is a fixed property of the final question (`held_out`), so the test asks new combinations of trained parts.
"""

import hashlib
from collections.abc import Callable
from random import Random
from typing import NamedTuple, TypeVar

from dgemma_jax.training.demo.example import Example, Split, ask

T = TypeVar("T")
_TRIES = 100_000

CONTRACTIONS = (
    ("What is ", "What's "),
    ("Who is ", "Who's "),
    ("That is ", "That's "),
    ("I am ", "I'm "),
    ("do not ", "don't "),
)
# An opening that ends in a comma or colon is followed by a small letter.
OPENINGS: tuple[str, ...] = (
    *("Hi, ", "Hello, ", "Hey, ", "Okay, ", "So, ", "Well, ", "Now, ", "DGemma, ", "Hi DGemma, ", "Hey DGemma, "),
    *("Hi! ", "Hello! ", "Hey! ", "Hello DGemma! ", "Good morning! ", "Okay. ", "Thanks. ", "Can you help me? "),
)
QUESTION_OPENINGS = (
    *("Tell me, ", "I wonder, ", "Please tell me: ", "Can you tell me: ", "Do you know: ", "I want to know: "),
    *("Quick question: ", "Next question: ", "I have a question. ", "One more question: ", "Please answer: "),
)
REQUEST_OPENINGS = ("Please ", "Can you ", "Could you ", "Can you please ", "Would you please ", "I want you to ")
_REQUESTS = """Add Answer Calculate Compute Count Create Describe Draw Explain Find Give Introduce List Make Mix
    Multiply Name Play Print Put Recite Recommend Repeat Return Say Show Sing Spell Subtract Summarize Tell Translate
    Turn Work Write"""
REQUESTS = frozenset(_REQUESTS.split())
QUESTION_ENDINGS = ("", "", "", "??", " ?", ", please?", " please?", " please", ", thanks", "? Thanks!", "? Thank you.")
REQUEST_ENDINGS = ("", "", "", "!", ", please.", " please.", " please", ", thanks", ". Thanks!", ". Thank you.")

_MARKS = str.maketrans("", "", " \n\t.,?!:;'")


def held_out(key: str, percent: int) -> bool:
    """Whether `key` belongs to the test split: a fixed property of the text, `percent` of all keys."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 100 < percent


def canonical(text: str) -> str:
    """`text` in small letters without spaces and marks: what two typings of one question have in common."""
    return text.lower().translate(_MARKS)


def draw_split(rng: Random, split: Split, make: Callable[[Random], T], key: Callable[[T], str], percent: int = 8) -> T:
    """Draw with `make` until the drawn thing's `key` is held out (test) or is not (train).

    Raises:
        ValueError: if `make` seems to have nothing for the split.
    """
    for _ in range(_TRIES):
        drawn = make(rng)
        if held_out(key(drawn), percent) == (split == "test"):
            return drawn
    raise ValueError(f"nothing for the {split} split in {_TRIES} draws; let make draw from more, or raise percent")


class Question(NamedTuple):
    """A question as the user types it, its answer, the thought on the way, and the answer in one word if there is."""

    text: str
    answer: str
    thought: str
    one_word: str | None = None


def draw_question(rng: Random, split: Split, make: Callable[[Random], Question]) -> Question:
    """A question of the split, which its canonical text decides."""
    return draw_split(rng, split, make, lambda question: canonical(question.text))


def ask_question(family: str, question: Question, thinking: bool) -> Example:
    """The example that asks `question`."""
    return ask(family, question.text, question.answer, question.thought if thinking else None)


def wordings(text: str) -> tuple[str, ...]:
    """Wordings written as "one | another | a third", over as many lines as they need."""
    return tuple(" ".join(wording.split()) for wording in text.split("|"))


def vary(rng: Random, text: str, *, polite: bool = True) -> str:
    """`text` as another person would type it; unchanged in three of ten cases.

    `polite` allows an opening ("Hi, ", "Can you ...") and an ending (", please?", "? Thanks!"), which suit questions
    and requests but not statements. Fields in braces survive, so a template may be varied before its case-sensitive
    values are filled in.
    """
    if rng.random() < 0.3:
        return text
    if rng.random() < 0.2:
        for long, short in CONTRACTIONS:
            text = text.replace(long, short)
    if polite:
        text = _be_polite(rng, text)
    elif rng.random() < 0.4:
        text = text.rstrip(".?! ")
    case = rng.random()
    if case < 0.2:
        return text.lower()
    return lower_first(text) if case < 0.35 else text


def lower_first(text: str) -> str:
    """`text` with a small first letter, but for "I" and abbreviations."""
    keep = text.startswith(("I ", "I'")) or text[:2].isupper()
    return text if keep else text[:1].lower() + text[1:]


def _be_polite(rng: Random, text: str) -> str:
    """`text` with an opening, another ending, or both."""
    part = rng.random()
    if part < 0.75:
        text = _open(rng, text)
    return _end(rng, text) if part > 0.4 else text


def _open(rng: Random, text: str) -> str:
    """`text` behind an opening that suits it."""
    openings = OPENINGS
    if text.endswith("?"):
        openings = OPENINGS + QUESTION_OPENINGS
    elif text.partition(" ")[0] in REQUESTS and "please" not in text.lower():
        openings = OPENINGS + 3 * REQUEST_OPENINGS
    opening = rng.choice(openings)
    if opening[-2] in "!.?":
        return opening + text
    if opening.startswith(("Can you ", "Could you ", "Would you ")) and text.endswith("."):
        text = text[:-1] + "?"
    return opening + lower_first(text)


def _end(rng: Random, text: str) -> str:
    """`text` with another ending; a text without a final mark, or with its question mark alone at the end, stays."""
    bare = text.rstrip(".?! ")
    if bare == text or bare.endswith(("=", ", right")):
        return text
    ending = rng.choice(QUESTION_ENDINGS if text.endswith("?") else REQUEST_ENDINGS)
    if "please" in ending and "please" in text.lower():
        return bare
    return bare + ending
