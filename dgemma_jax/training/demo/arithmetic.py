"""Sums, differences and products of one-digit numbers, typed in digits or words, in many wordings.

All 300 problems are trained on; what the test keeps to itself is the whole question, that is a problem in a wording.
"""

from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.wording import canonical, draw_split, vary

FAMILY = "arithmetic"

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TYPED = {"+": ("+",), "-": ("-",), "x": ("*", "x")}
SPOKEN = {"+": ("plus",), "-": ("minus", "minus", "take away"), "x": ("times", "times", "multiplied by")}
NOUNS = {"+": "the sum of {a} and {b}", "-": "the difference between {a} and {b}", "x": "the product of {a} and {b}"}
VERBS = {"+": "Add {a} and {b}", "-": "Subtract {b} from {a}", "x": "Multiply {a} by {b}"}

FRAMES = (
    "What is {}?",
    "What is {}?",
    "What is {}?",
    "How much is {}?",
    "How much is {}?",
    "Calculate {}.",
    "Compute {}.",
    "Work out {}.",
    "Tell me {}.",
    "Tell me what {} is.",
    "Can you tell me what {} is?",
    "Do you know what {} is?",
    "I want to know what {} is.",
    "Can you calculate {}?",
    "Could you work out {}?",
    "Give me {}.",
    "I need {}.",
    "What do I get for {}?",
)
SIGN_FRAMES = ("{}", "{}", "{}?", "{} = ?", "{} = ?", "{} =", "{} is", "{} equals what?", "What does {} make?")
VERB_FRAMES = ("{}.", "{}.", "{} for me.", "Can you {}?", "Could you {}?", "What do I get if I {}?")


@dataclass(frozen=True)
class Problem:
    """Two numbers and the sign between them: + - or x."""

    a: int
    sign: str
    b: int

    @property
    def result(self) -> int:
        """The value of the problem."""
        return {"+": self.a + self.b, "-": self.a - self.b, "x": self.a * self.b}[self.sign]

    @property
    def sentence(self) -> str:
        """The problem and its result as every answer writes it."""
        return f"{self.a} {self.sign} {self.b} = {self.result}."


def put(rng: Random, problem: Problem, a: str, b: str) -> str:
    """A question for `problem`, whose numbers are typed as `a` and `b`."""
    kind = rng.random()
    if kind < 0.15:
        request = VERBS[problem.sign]
        frame = rng.choice(VERB_FRAMES)
        text = frame.format(request if frame.startswith("{}") else request[0].lower() + request[1:])
        return vary(rng, text).format(a=a, b=b)
    if kind < 0.27 and not (problem.sign == "-" and problem.result < 0):  # a difference of 3 and 8 could mean 5
        return vary(rng, rng.choice(FRAMES)).format(NOUNS[problem.sign].format(a=a, b=b))
    frame = vary(rng, rng.choice(FRAMES if rng.random() < 0.6 else SIGN_FRAMES))
    return _spaced(rng, frame, _typed(rng, problem.sign, a, b))


def _typed(rng: Random, sign: str, a: str, b: str) -> str:
    """The bare problem: "7 + 5", "7+5" or "7 plus 5"."""
    if rng.random() < (0.35 if a.isdigit() else 0.9):
        return f"{a} {rng.choice(SPOKEN[sign])} {b}"
    space = " " if rng.random() < 0.6 or not a.isdigit() else ""
    return f"{a}{space}{rng.choice(TYPED[sign])}{space}{b}"


def _spaced(rng: Random, frame: str, typed: str) -> str:
    """The problem in its frame: without spaces in it there are mostly none before the equals sign either."""
    close = " " not in typed and rng.random() < 0.7
    return (frame.replace("{} =", "{}=").replace("= ?", "=?") if close else frame).format(typed)


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A problem in digits or number words; the answer is always in digits."""

    def make(rng: Random) -> tuple[str, Problem]:
        problem = Problem(rng.randrange(10), rng.choice("+-x"), rng.randrange(10))
        names = NUMBER_WORDS if rng.random() < 0.2 else "0123456789"
        return put(rng, problem, names[problem.a], names[problem.b]), problem

    question, problem = draw_split(rng, split, make, lambda made: canonical(made[0]), percent=10)
    return ask(FAMILY, question, problem.sentence, problem.sentence.replace(" ", "")[:-1] if thinking else None)
