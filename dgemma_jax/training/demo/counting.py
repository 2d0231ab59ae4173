"""Counting: answers longer than one canvas. About 6 % of the (start, end) pairs are never trained on."""

from random import Random

from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.wording import Wordings, held_out, vary

FAMILY = "counting"
WORDINGS = Wordings(
    train=(
        "Count from {a} to {b}.",
        "Please count from {a} to {b}.",
        "Can you count from {a} to {b}?",
        "Count up from {a} to {b}.",
        "List the numbers from {a} to {b}.",
    ),
    test=("Count from {a} up to {b}.", "Could you count from {a} to {b}?"),
)
SHORTEST, LONGEST, LAST = 3, 19, 30
_PAIRS = tuple((a, a + n) for a in range(1, 21) for n in range(SHORTEST, LONGEST + 1) if a + n <= LAST)
_OF_SPLIT = {
    split: tuple(p for p in _PAIRS if held_out("counting {} {}".format(*p), 6) == (split == "test"))
    for split in ("train", "test")
}


def draw(rng: Random, split: Split) -> Example:
    """Numbers in order, separated by commas."""
    a, b = rng.choice(_OF_SPLIT[split])
    question = vary(rng, WORDINGS.draw(rng, split)).format(a=a, b=b)
    return ask(FAMILY, question, ", ".join(map(str, range(a, b + 1))) + ".")
