"""Sums and differences of one-digit numbers: all 200 of them are trained on, in other wordings than the test's."""

from random import Random

from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.wording import Wordings, vary

FAMILY = "arithmetic"

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_EITHER = (
    "What is {a} {sign} {b}?",
    "What is {a} {sign} {b}?",
    "{a} {sign} {b}",
    "{a} {sign} {b} = ?",
    "{a}{sign}{b}",
    "{a}{sign}{b}=?",
    "{a}{sign}{b}=",
    "What is {a}{sign}{b}?",
    "How much is {a} {sign} {b}?",
    "Calculate {a} {sign} {b}.",
    "Compute {a} {sign} {b}.",
    "What is {a} {word} {b}?",
    "How much is {a} {word} {b}?",
    "{a} {word} {b}",
    "Tell me what {a} {sign} {b} is.",
    "Can you compute {a} {sign} {b}?",
)
_EITHER_TEST = (
    "How much do I get for {a} {sign} {b}?",
    "Can you tell me what {a} {sign} {b} is?",
    "Work out {a} {sign} {b}.",
    "{a} {sign} {b} equals what?",
    "Could you calculate {a} {word} {b}?",
)
SUM = Wordings(
    train=(*_EITHER, "Add {a} and {b}.", "What is the sum of {a} and {b}?", "Can you add {a} and {b}?"),
    test=(*_EITHER_TEST, "Tell me the sum of {a} and {b}."),
)
DIFFERENCE = Wordings(
    train=(*_EITHER, "Subtract {b} from {a}.", "What is {a} take away {b}?", "Can you subtract {b} from {a}?"),
    test=(*_EITHER_TEST, "How much is {a} take away {b}?"),
)


def draw(rng: Random, split: Split) -> Example:
    """A problem in digits or number words; the answer is always in digits."""
    a, sign, b = rng.randrange(10), rng.choice("+-"), rng.randrange(10)
    template = (SUM if sign == "+" else DIFFERENCE).draw(rng, split)
    digits = "{sign}" in template or rng.random() < 0.6
    question = template.format(
        a=a if digits else NUMBER_WORDS[a],
        b=b if digits else NUMBER_WORDS[b],
        sign=sign,
        word="plus" if sign == "+" else "minus",
    )
    answer = a + b if sign == "+" else a - b
    return ask(FAMILY, vary(rng, question), f"{a} {sign} {b} = {answer}.")
