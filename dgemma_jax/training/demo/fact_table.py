"""A table of small facts: pairs (x, y), the wordings that ask for y given x, and the sentence that says it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo.wording import Question, vary, wordings

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A table of facts: `asked` and `thought` hold {x}; `sentence` answers with {x} and {y}; y is the short answer."""

    asked: tuple[str, ...]
    thought: str
    sentence: str
    pairs: Pairs

    def make(self, rng: Random) -> Question:
        """A question about one of the pairs."""
        x, y = rng.choice(self.pairs)
        text = vary(rng, capitalised(rng.choice(self.asked).format(x=x)))
        one_word = None if " " in y else capitalised(y)
        return Question(text, capitalised(self.sentence.format(x=x, y=y)), self.thought.format(x=x), one_word)


def capitalised(text: str) -> str:
    """`text` with a capital in front and the rest as it is."""
    return text[:1].upper() + text[1:]


def pairs(text: str) -> Pairs:
    """Pairs written as "x: y, x: y"."""
    items = [item.split(":") for item in text.split(",")]
    return tuple((x.strip(), y.strip()) for x, y in items)


def both_ways(pairs: Pairs) -> Pairs:
    """The pairs and their mirror images."""
    return pairs + tuple((y, x) for x, y in pairs)


def _next(ring: Sequence[str]) -> Pairs:
    return tuple((ring[i], ring[(i + 1) % len(ring)]) for i in range(len(ring)))


def _previous(ring: Sequence[str]) -> Pairs:
    return tuple((y, x) for x, y in _next(ring))


def after(noun: str, ring: Sequence[str]) -> Facts:
    """What comes after each member of a ring of days, months or seasons."""
    asked = wordings(
        f"""What {noun} comes after {{x}}? | Which {noun} comes after {{x}}? | Which {noun} follows {{x}}?
        | What is the {noun} after {{x}}? | Tell me the {noun} after {{x}}. | What comes after {{x}}?
        | Name the {noun} that comes after {{x}}. | What {noun} follows {{x}}? | Name the {noun} after {{x}}.
        | Which is the {noun} after {{x}}? | What is the next {noun} after {{x}}? | What follows {{x}}?
        | Which {noun} is after {{x}}? | The {noun} after {{x}}?"""
    )
    return Facts(asked=asked, thought=f"The {noun} after {{x}}.", sentence="{y} comes after {x}.", pairs=_next(ring))


def before(noun: str, ring: Sequence[str]) -> Facts:
    """What comes before each member of a ring of days, months or seasons."""
    asked = wordings(
        f"""What {noun} comes before {{x}}? | Which {noun} comes before {{x}}? | Which {noun} is before {{x}}?
        | What is the {noun} before {{x}}? | Tell me the {noun} before {{x}}. | What comes before {{x}}?
        | Name the {noun} that comes before {{x}}. | What {noun} is before {{x}}? | Name the {noun} before {{x}}.
        | Which is the {noun} before {{x}}? | What is before {{x}}? | The {noun} before {{x}}?"""
    )
    sentence = "{y} comes before {x}."
    return Facts(asked=asked, thought=f"The {noun} before {{x}}.", sentence=sentence, pairs=_previous(ring))
