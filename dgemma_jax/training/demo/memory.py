"""Remembering what the user said some turns before: a name, a favourite colour or number, a city, a pet.

    "My name is Rune."  "Nice to meet you, Rune!"     tell
    "What is 3 + 4?"    "3 + 4 = 7."                  distract
    "What is my name?"  "Your name is Rune."          ask back

The test's names are never trained on; what is told and how it is asked back are new together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo import arithmetic, capitals, facts, greetings
from dgemma_jax.training.demo.example import Example, Message, Split, assistant, user
from dgemma_jax.training.demo.json_text import ANIMALS, CITIES, COLOURS
from dgemma_jax.training.demo.names import draw_name
from dgemma_jax.training.demo.wording import canonical, draw_split, vary, wordings

FAMILY = "memory"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something the user tells, the model's reply to that, how the user asks it back, and the thoughts on the way."""

    what: str
    value: Callable[[Random, Split], str]
    told: tuple[str, ...]
    reply: str
    asked: tuple[str, ...]
    recalled: str
    recalling: str
    unknown: str


def _pet(rng: Random, split: Split) -> str:
    animal = rng.choice(ANIMALS)
    return f"an {animal}" if animal[0] in "aeiou" else f"a {animal}"


NAME = Subject(
    what="name",
    value=draw_name,
    told=wordings(
        """My name is {}. | My name is {}. | My name is {}. | I am {}. | I am {}. | I am called {}. | Call me {}.
        | Hello, my name is {}. | Hi, I am {}. | Hello, I am {}. | Hi! My name is {}. | You can call me {}.
        | Please call me {}. | Remember that my name is {}. | People call me {}. | My first name is {}. | It is me, {}.
        | The name is {}. | I want you to know that my name is {}. | By the way, I am {}."""
    ),
    reply="Nice to meet you, {}!",
    asked=wordings(
        """What is my name? | What is my name? | What is my name? | Who am I? | Who am I? | Do you remember my name?
        | What am I called? | Tell me my name. | Do you know my name? | Say my name. | What was my name?
        | Can you tell me my name? | Do you know who I am? | Do you still know my name? | And what is my name?
        | What did I say my name is? | Do you remember who I am? | Tell me who I am. | Write my name."""
    ),
    recalled="Your name is {}.",
    recalling="The user's name is {}.",
    unknown="You have not told me your name.",
)
COLOUR = Subject(
    what="colour",
    value=lambda rng, split: rng.choice(COLOURS),
    told=wordings(
        """My favourite colour is {}. | My favourite colour is {}. | My favorite color is {}. | I like the colour {}.
        | I like the color {}. | I love the colour {}. | The colour I like best is {}. | My colour is {}.
        | Remember that my favourite colour is {}. | By the way, my favourite colour is {}.
        | The colour that I like most is {}."""
    ),
    reply="I will remember that you like {}.",
    asked=wordings(
        """What is my favourite colour? | What is my favourite colour? | What is my favorite color?
        | Which colour do I like? | Do you remember my favourite colour? | Tell me my favourite colour.
        | Which colour do I like best? | Do you know my favourite colour? | What colour do I like? | What was my colour?
        | Do you remember which colour I like? | And what is my favourite colour? | Tell me which colour I like best.
        | Which color do I like? | Do you know my favorite color?"""
    ),
    recalled="Your favourite colour is {}.",
    recalling="The user's favourite colour is {}.",
    unknown="You have not told me your favourite colour.",
)
NUMBER = Subject(
    what="number",
    value=lambda rng, split: str(rng.randrange(100)),
    told=wordings(
        """My favourite number is {}. | My favorite number is {}. | My lucky number is {}. | Remember the number {}.
        | The number I like best is {}. | My number is {}. | Please remember the number {}. | I like the number {}.
        | By the way, my number is {}. | Keep the number {} in mind. | Remember that my number is {}."""
    ),
    reply="I will remember the number {}.",
    asked=wordings(
        """What is my favourite number? | What is my favorite number? | What was my number? | What is my number?
        | Do you remember my number? | Which number do I like best? | Tell me my number. | Do you know my number?
        | Which number did I tell you? | Which number was it? | What number did I tell you? | And what is my number?
        | What is my lucky number? | Do you remember the number? | What was the number?"""
    ),
    recalled="Your number is {}.",
    recalling="The user's number is {}.",
    unknown="You have not told me your number.",
)
CITY = Subject(
    what="city",
    value=lambda rng, split: rng.choice(CITIES),
    told=wordings(
        """I live in {}. | I live in {}. | I am from {}. | My city is {}. | My home is in {}. | I come from {}.
        | Remember that I live in {}. | The city I live in is {}. | By the way, I live in {}. | I moved to {}."""
    ),
    reply="I will remember that you live in {}.",
    asked=wordings(
        """Where do I live? | Where do I live? | Which city do I live in? | What is my city? | In which city do I live?
        | Do you remember where I live? | Tell me where I live. | Do you know where I live? | Do you know my city?
        | What city do I live in? | Where is my home? | And where do I live?"""
    ),
    recalled="You live in {}.",
    recalling="The user lives in {}.",
    unknown="You have not told me where you live.",
)
PET = Subject(
    what="pet",
    value=_pet,
    told=wordings(
        """I have {}. | I have {} at home. | My pet is {}. | I have {} as a pet. | I own {}. | We have {} at home.
        | My favourite pet is {}. | Remember that I have {}. | By the way, I have {}. | At home I have {}."""
    ),
    reply="I will remember that you have {}.",
    asked=wordings(
        """What is my pet? | Which pet do I have? | What pet do I have? | Which animal do I have? | Do you know my pet?
        | Do you remember my pet? | Tell me which pet I have. | What animal do I have? | Do you know which pet I have?
        | And which pet do I have? | What do I have as a pet? | Tell me what my pet is."""
    ),
    recalled="You have {}.",
    recalling="The user has {}.",
    unknown="You have not told me your pet.",
)
SUBJECTS = (NAME, COLOUR, NUMBER, CITY, PET)
_NAME_FIRST = 0.8

PLANS = {"T": 12, "A": 5, "TA": 20, "TDA": 20, "TDDA": 6, "TTA": 11, "TDTA": 6, "TTDA": 4, "TTTA": 4, "DA": 2, "TD": 8}
"""How often a conversation takes which turns: T tells a thing that was not told yet, D distracts, A asks back."""
TEST_PLANS = {plan: often for plan, often in PLANS.items() if plan.endswith("A") and len(plan) > 2}
"""Something stands between what was told first and the question."""

DISTRACTORS = (capitals, facts, greetings, arithmetic)
_LONGEST_DISTRACTION = 40


def _tell(rng: Random, subject: Subject, value: str, thinking: bool) -> list[Message]:
    template = vary(rng, rng.choice(subject.told), polite=False)
    thought = f"The user tells a {subject.what}." if thinking else None
    return [user(template.format(value)), assistant(subject.reply.format(value), thought)]


def _ask_back(rng: Random, subject: Subject, value: str | None, thinking: bool) -> list[Message]:
    question = user(vary(rng, rng.choice(subject.asked)))
    if value is None:
        return [question, assistant(subject.unknown, f"I was not told the {subject.what}." if thinking else None)]
    thought = subject.recalling.format(value) if thinking else None
    return [question, assistant(subject.recalled.format(value), thought)]


def _distract(rng: Random, split: Split, thinking: bool) -> list[Message]:
    """A turn about something else, with a question short enough for several turns to fit a prompt."""
    while True:
        question, answer = rng.choice(DISTRACTORS).draw(rng, split, thinking).messages
        if len(question["content"]) <= _LONGEST_DISTRACTION:
            return [question, answer]


def _told(rng: Random, split: Split, count: int) -> list[tuple[Subject, str]]:
    """The things told, in order; the name mostly among them and first."""
    subjects = rng.sample(SUBJECTS[1:], k=count)
    if count and rng.random() < _NAME_FIRST:
        subjects[0] = NAME
        if rng.random() < 0.4:
            rng.shuffle(subjects)
    return [(subject, subject.value(rng, split)) for subject in subjects]


def _asked(rng: Random, told: list[tuple[Subject, str]]) -> tuple[Subject, str | None]:
    """What is asked back: mostly something told, three times as often the name as another thing."""
    names = [(subject, value) for subject, value in told if subject is NAME]
    if told and rng.random() < 0.9:
        return rng.choice([*told, *names, *names])
    known = [subject for subject, _ in told]
    return rng.choice([subject for subject in SUBJECTS if subject not in known]), None


def _conversation(rng: Random, split: Split, thinking: bool) -> tuple[list[Message], str]:
    """Its messages, and the values and last question that hold it out."""
    plans = PLANS if split == "train" else TEST_PLANS
    (plan,) = rng.choices(tuple(plans), weights=tuple(plans.values()))
    told = _told(rng, split, plan.count("T"))
    untold = iter(told)
    messages: list[Message] = []
    for place, turn in enumerate(plan, start=1):
        now = thinking and place == len(plan)
        if turn == "T":
            messages += _tell(rng, *next(untold), now)
        elif turn == "D":
            messages += _distract(rng, split, now)
        else:
            messages += _ask_back(rng, *_asked(rng, told), now)
    key = canonical(" ".join([*(value for _, value in told), messages[-2]["content"]]))
    return messages, key


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A conversation of one to four turns that ends with a reply to what was told, an answer about it, or another.

    In the test the last turn asks back, and something stands between.
    """
    messages, _ = draw_split(rng, split, lambda rng: _conversation(rng, split, thinking), lambda made: made[1])
    return Example(family=FAMILY, messages=messages, thinking=thinking)
