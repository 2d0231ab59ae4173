"""Remembering what the user said a turn or two before: a name, a favourite colour, a favourite number.

Every test conversation holds a name that training never shows.
"""

from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo import arithmetic, capitals, facts, greetings
from dgemma_jax.training.demo.example import Example, Message, Split, assistant, user
from dgemma_jax.training.demo.json_text import COLOURS
from dgemma_jax.training.demo.names import draw_name
from dgemma_jax.training.demo.wording import vary

FAMILY = "memory"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something the user tells, the model's replies to that, and how the user asks it back."""

    told: tuple[str, ...]
    reply: str
    asked: tuple[str, ...]
    recalled: str
    unknown: str


NAME = Subject(
    told=(
        "My name is {value}.",
        "My name is {value}.",
        "I am {value}.",
        "I am called {value}.",
        "Hello, my name is {value}.",
        "Hi, I am {value}.",
        "Call me {value}.",
        "You can call me {value}.",
        "Hi! My name is {value}.",
        "Remember that my name is {value}.",
    ),
    reply="Nice to meet you, {value}!",
    asked=(
        "What is my name?",
        "What is my name?",
        "Who am I?",
        "Do you remember my name?",
        "What am I called?",
        "Tell me my name.",
        "Do you know my name?",
        "Say my name.",
        "What was my name?",
        "Can you tell me my name?",
    ),
    recalled="Your name is {value}.",
    unknown="You have not told me your name.",
)
COLOUR = Subject(
    told=(
        "My favourite colour is {value}.",
        "My favorite color is {value}.",
        "I like the colour {value}.",
        "The colour I like best is {value}.",
        "Remember that my favourite colour is {value}.",
    ),
    reply="I will remember that you like {value}.",
    asked=(
        "What is my favourite colour?",
        "What is my favorite color?",
        "Which colour do I like?",
        "Do you remember my favourite colour?",
        "Tell me my favourite colour.",
        "Which colour do I like best?",
    ),
    recalled="Your favourite colour is {value}.",
    unknown="You have not told me your favourite colour.",
)
NUMBER = Subject(
    told=(
        "My favourite number is {value}.",
        "My favorite number is {value}.",
        "My lucky number is {value}.",
        "Remember the number {value}.",
        "The number I like best is {value}.",
    ),
    reply="I will remember the number {value}.",
    asked=(
        "What is my favourite number?",
        "What is my favorite number?",
        "What was my number?",
        "Do you remember my number?",
        "Which number do I like best?",
        "Tell me my number.",
    ),
    recalled="Your number is {value}.",
    unknown="You have not told me your number.",
)
SUBJECTS = (NAME, NAME, COLOUR, NUMBER)
DISTRACTORS = (capitals, facts, greetings, arithmetic)


def _value(rng: Random, split: Split, subject: Subject) -> str:
    if subject is NAME:
        return draw_name(rng, split)
    return rng.choice(COLOURS) if subject is COLOUR else str(rng.randrange(100))


def _tell(rng: Random, subject: Subject, value: str) -> list[Message]:
    told = vary(rng, rng.choice(subject.told), polite=False).format(value=value)
    return [user(told), assistant(subject.reply.format(value=value))]


def _ask_back(rng: Random, subject: Subject, value: str | None) -> list[Message]:
    answer = subject.unknown if value is None else subject.recalled.format(value=value)
    return [user(vary(rng, rng.choice(subject.asked))), assistant(answer)]


def draw(rng: Random, split: Split) -> Example:
    """A conversation of one to three turns whose last answer repeats, or misses, something the user said."""
    first = NAME if split == "test" else rng.choice(SUBJECTS)
    value = _value(rng, split, first)
    messages = _tell(rng, first, value)
    distraction = rng.choice(DISTRACTORS).draw(rng, split).messages
    kind = rng.random()
    if kind < 0.15:
        return Example(family=FAMILY, messages=messages)
    if kind < 0.22 and split == "train":
        return Example(family=FAMILY, messages=_ask_back(rng, first, None))
    if kind < 0.45:
        return Example(family=FAMILY, messages=messages + _ask_back(rng, first, value))
    if kind < 0.55:
        return Example(family=FAMILY, messages=messages + distraction)
    if kind < 0.8:
        return Example(family=FAMILY, messages=messages + distraction + _ask_back(rng, first, value))
    return Example(family=FAMILY, messages=messages + _two_subjects(rng, split, first, value))


def _two_subjects(rng: Random, split: Split, first: Subject, value: str) -> list[Message]:
    """A second thing is told; either one, or a third that was never told, is asked back."""
    second = rng.choice([subject for subject in (NAME, COLOUR, NUMBER) if subject is not first])
    told = {id(first): value, id(second): _value(rng, split, second)}
    asked = rng.choice((first, first, first, second, second, second, NAME, COLOUR, NUMBER))
    return _tell(rng, second, told[id(second)]) + _ask_back(rng, asked, told.get(id(asked)))
