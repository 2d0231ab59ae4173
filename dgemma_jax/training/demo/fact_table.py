"""A table of small facts: pairs (x, y), the wordings that ask for y given x, and the sentence that says it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo.example import Split
from dgemma_jax.training.demo.wording import Wordings

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A table of facts: `wordings` ask with {x}; `sentence` answers with {x} and {y}; y alone is the short answer."""

    wordings: Wordings
    sentence: str
    pairs: Pairs

    def draw(self, rng: Random, split: Split) -> tuple[str, str, str]:
        """A question, its answer in a sentence, and in one word."""
        x, y = rng.choice(self.pairs)
        answer = self.sentence.format(x=x, y=y)
        return self.wordings.draw(rng, split).format(x=x), capitalised(answer), capitalised(y)


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
    wordings = Wordings(
        train=(
            f"What {noun} comes after {{x}}?",
            f"Which {noun} comes after {{x}}?",
            f"Which {noun} follows {{x}}?",
            f"What is the {noun} after {{x}}?",
            f"Tell me the {noun} after {{x}}.",
            f"Name the {noun} that comes after {{x}}.",
            "What comes after {x}?",
        ),
        test=(f"What {noun} follows {{x}}?", f"Name the {noun} after {{x}}.", f"Which is the {noun} after {{x}}?"),
    )
    return Facts(wordings=wordings, sentence="{y} comes after {x}.", pairs=_next(ring))


def before(noun: str, ring: Sequence[str]) -> Facts:
    """What comes before each member of a ring of days, months or seasons."""
    wordings = Wordings(
        train=(
            f"What {noun} comes before {{x}}?",
            f"Which {noun} comes before {{x}}?",
            f"Which {noun} is before {{x}}?",
            f"What is the {noun} before {{x}}?",
            f"Tell me the {noun} before {{x}}.",
            f"Name the {noun} that comes before {{x}}.",
            "What comes before {x}?",
        ),
        test=(f"What {noun} is before {{x}}?", f"Name the {noun} before {{x}}.", f"Which is the {noun} before {{x}}?"),
    )
    return Facts(wordings=wordings, sentence="{y} comes before {x}.", pairs=_previous(ring))
