"""Lists: counting, the alphabet, multiplication tables, in answers of up to six canvases; days and months, in one.

The test counts between pairs of numbers, and names spans of letters and multiples, that training never asks for;
where there is too little to choose from (tables, days, months), it asks in wordings that training never uses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from string import ascii_uppercase as alphabet

from dgemma_jax.training.demo.arithmetic import NUMBER_WORDS
from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.facts import DAYS, MONTHS
from dgemma_jax.training.demo.mistakes import half_of_training
from dgemma_jax.training.demo.series import Series
from dgemma_jax.training.demo.wording import canonical, draw_split, vary

FAMILY = "lists"

STEP_WORDS = {2: "twos", 3: "threes", 4: "fours", 5: "fives", 10: "tens"}
STEPS = {1: ("",)} | {step: (f" by {w}", f" in {w}", f" in steps of {step}") for step, w in STEP_WORDS.items()}
RARE_STEPS = (6, 7, 8, 9, 11, 12, 15, 20, 25, 30, 40, 50)
STEPS |= {step: (f" in steps of {step}",) for step in RARE_STEPS}
LAST = {1: 99, 2: 100, 5: 100, 10: 100}
FEWEST, MOST = 12, 63
LONG = 50
"""Characters that a long answer has at least, and so more tokens than a canvas: digits, letters and commas are some."""
PRACTICE = 0.6
"""How often training asks for fewer numbers than the test, of more steps and further up: a few tokens say as much
about where to stop. All of its counts by fives and tens are such, and few of them are spans like those of the test: up
to 100 there are few enough to know by heart, and that a span is never asked for would be learned with the others.
"""
PRACTICE_STEPS = {1: 30, 2: 16, 3: 4, 4: 4, 5: 22, 10: 18} | dict.fromkeys(RARE_STEPS, 1)
FAR_LAST = dict.fromkeys(PRACTICE_STEPS, 400) | {1: 200, 2: 200, 5: 300}

REQUESTS = ("{}.", "{}.", "{}.", "{} for me.", "Can you {}?", "Can you {} for me?", "Try to {}.", "Let us {}.")
LISTING = ("list", "list", "write", "write down", "give me", "show me", "tell me", "say", "name")
COUNT_UP = ("count from {a} to {b}", "count from {a} to {b}", "count up from {a} to {b}", "count from {a} up to {b}")
COUNT_DOWN = (
    "count down from {a} to {b}",
    "count from {a} down to {b}",
    "count backwards from {a} to {b}",
    "count from {a} to {b}",
)
FROM_STEP = ("count to {b}", "count up to {b}", "count until {b}", "count from {a} to {b}")
LETTERS = ("the letters from {a} to {b}", "the alphabet from {a} to {b}", "all letters from {a} to {b}")
WHOLE = ("the alphabet", "the alphabet", "the whole alphabet", "all letters of the alphabet", "the letters from A to Z")
BACKWARDS = (" backwards", " in reverse", " in reverse order")
TABLES = (
    "the table of {k}",
    "the {k} times table",
    "the multiplication table of {k}",
    "the multiplication table for {k}",
    "the times table of {k}",
    "the table for {k}",
)
MULTIPLES = ("the first {n} multiples of {k}", "{n} multiples of {k}", "the {n} smallest multiples of {k}")
STARTS = (" starting with {x}", " starting from {x}", " starting on {x}", " beginning with {x}", ", {x} first")
NAMED = {
    "days": (
        DAYS,
        ("the days of the week", "the days of a week", "the seven days of the week", "all days of the week"),
    ),
    "months": (MONTHS, ("the months of the year", "the months of a year", "the twelve months", "all months")),
}


@dataclass(frozen=True)
class Task:
    """A question, the list that answers it, its thought, and what holds it out."""

    question: str
    series: Series
    thought: str
    key: str


def _ordered(rng: Random, order: str) -> str:
    """An order such as "count to 30" as a request."""
    frame = rng.choice(REQUESTS)
    text = frame.format(order[0].upper() + order[1:] if frame.startswith("{}") else order)
    return vary(rng, text)


def _listed(rng: Random, what: str) -> str:
    """A request for a list of `what`; now and then just its name."""
    if rng.random() < 0.15:
        return vary(rng, what[0].upper() + what[1:] + rng.choice(("", "?", ".")))
    return _ordered(rng, f"{rng.choice(LISTING)} {what}")


def _span(rng: Random, step: int) -> tuple[int, int]:
    """Two multiples of the step (any numbers for 1 and 2) with a long list between; sometimes a short one from one."""
    if step == 1 and rng.random() < 0.12:
        return 1, rng.randrange(5, 31)
    if step > 2:
        low = step * rng.randrange(1, 90 // step // 2)
        return low, step * rng.randrange(low // step + 3, 100 // step + 1)
    count = rng.randint(FEWEST, MOST if step == 1 else 30)
    low = step if rng.random() < 0.15 else rng.randrange(1, LAST[step] - step * (count - 1) + 1)
    return low, low + step * (count - 1)


def _practice_span(rng: Random, step: int) -> tuple[int, int]:
    """As `_span`, further up and with fewer numbers: from 2 to 11, up to 20 of the larger steps.

    Now and then they go up to 999, or begin with what is no multiple of the step.
    """
    if step == 1 and rng.random() < 0.06:
        return 1, rng.randint(2, 45)
    near, far = LAST.get(step, 100), FAR_LAST[step]
    most = rng.choice((FEWEST - 1, 20)) if step > 2 else FEWEST - 1
    span = step * (rng.randint(2, most) - 1)
    (last,) = rng.choices((near, far, 999), weights=(35, 50, 15))
    even = step > 2 and rng.random() < (0.15 if last == near else 0.85)
    low = step if rng.random() < 0.05 else rng.randint(1, max(1, last - span))
    low = max(step, low // step * step) if even else low
    return low, low + span


def _counting(rng: Random) -> Task:
    step = rng.choices((1, 2, 5, 10), weights=(75, 12, 8, 5))[0]
    return _count(rng, step, *_span(rng, step))


def _practice_counting(rng: Random) -> Task:
    if rng.random() < PRACTICE:
        step = rng.choices(list(PRACTICE_STEPS), weights=list(PRACTICE_STEPS.values()))[0]
        return _count(rng, step, *_practice_span(rng, step))
    step = rng.choices((1, 2), weights=(82, 18))[0]
    return _count(rng, step, *_span(rng, step))


def _count(rng: Random, step: int, low: int, high: int) -> Task:
    down = rng.random() < 0.3
    a, b = (high, low) if down else (low, high)
    orders = COUNT_DOWN if down else FROM_STEP if low == step else COUNT_UP
    by = rng.choice(STEPS[step])
    order = rng.choice(orders)
    order = order.replace("count", f"count{by}") if rng.random() < 0.3 else order + by
    if step == 1 and rng.random() < 0.25:
        question = _listed(rng, "the numbers from {a} " + ("down to {b}" if down and rng.random() < 0.7 else "to {b}"))
    else:
        question = _ordered(rng, order)
    thought = f"Count {'down ' if down else ''}from {a} to {b}{STEPS[step][0]}."
    series = Series.numbers(a, b, -step if down else step)
    return Task(question.format(a=a, b=b), series, thought, f"counting {a} {b} {step}")


def _letters(rng: Random) -> Task:
    backwards = rng.choice(BACKWARDS) if rng.random() < 0.25 else ""
    letters = alphabet[::-1] if backwards else alphabet
    if rng.random() < 0.3:
        question = _listed(rng, rng.choice(WHOLE) + backwards)
        series = Series.part(letters, 0, len(letters))
        return Task(question, series, f"The alphabet{' backwards' if backwards else ''}.", canonical(question))
    count = rng.randint(5, 25)
    start = rng.randrange(len(letters) - count + 1)
    first, last = letters[start], letters[start + count - 1]
    question = _listed(rng, rng.choice(LETTERS)).format(a=first, b=last)
    series = Series.part(letters, start, count)
    return Task(question, series, f"The letters from {first} to {last}.", f"letters {first} {last}")


def _table(rng: Random, most: int = 12) -> Task:
    k = rng.randint(1, most)
    question = _listed(rng, rng.choice(TABLES)).format(k=k)
    return Task(question, Series.table(k, 10), f"The table of {k}.", canonical(question))


def _multiples(rng: Random) -> Task:
    return _first_multiples(rng, rng.randint(3, 12), rng.randint(2, 12))


def _practice_multiples(rng: Random) -> Task:
    """Of many more numbers, from two on, and up to 14 of small ones: how many is for the question to say.

    Seldom of those up to 12: there are few enough to learn which of them are never asked for, which are the test's.
    """
    k = rng.randint(2, 12) if rng.random() < 0.12 else rng.randint(13, rng.choice((30, 99, 99)))
    return _first_multiples(rng, rng.randint(2, 14 if k < 10 else 12 if k < 34 else 10), k)


def _first_multiples(rng: Random, n: int, k: int) -> Task:
    """Lines of the table, as many as asked for."""
    typed = NUMBER_WORDS[n] if n < len(NUMBER_WORDS) and rng.random() < 0.5 else str(n)
    question = _listed(rng, rng.choice(MULTIPLES)).format(n=typed, k=k)
    return Task(question, Series.table(k, n), f"The first {n} multiples of {k}.", f"multiples {n} {k}")


def _named(rng: Random) -> Task:
    kind = rng.choice(("days", "months"))
    names, phrases = NAMED[kind]
    first = rng.randrange(len(names)) if rng.random() < 0.7 else None
    start = "" if first is None else rng.choice(STARTS)
    question = _listed(rng, rng.choice(phrases) + start).format(x=names[first or 0])
    series = Series((*names[first or 0 :], *names[: first or 0]), between=", ", end=".")
    thought = f"The {kind} from {names[first or 0]} on."
    return Task(question, series, thought, canonical(question))


_KINDS: dict[Split, dict[Callable[[Random], Task], int]] = {
    "test": {_counting: 52, _letters: 14, _table: 20, _multiples: 6, _named: 8},
    "train": {_practice_counting: 66, _letters: 22, partial(_table, most=30): 6, _practice_multiples: 19, _named: 3},
}
_LONG_KINDS: dict[Callable[[Random], Task], int] = {_counting: 52, _letters: 14, _table: 20, _multiples: 6}


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A list in its one plain form: numbers with spaces between, letters with commas, tables line by line."""
    return _draw(rng, split, thinking, _KINDS[split])


def draw_long(rng: Random, split: Split, thinking: bool) -> Example:
    """As `draw`; in the test numbers, letters or tables that take more than a canvas."""
    if split == "train":
        return draw(rng, split, thinking)
    while len((drawn := _draw(rng, split, thinking, _LONG_KINDS)).expected["content"]) < LONG:
        pass
    return drawn


def _draw(rng: Random, split: Split, thinking: bool, kinds: dict[Callable[[Random], Task], int]) -> Example:
    (kind,) = rng.choices(list(kinds), weights=list(kinds.values()))
    task = draw_split(rng, split, kind, lambda task: task.key)
    answer = str(task.series)
    mistake = half_of_training(rng, split, answer, lambda: task.series.mistake(rng))
    return ask(FAMILY, task.question, answer, task.thought if thinking else None, mistake=mistake)
