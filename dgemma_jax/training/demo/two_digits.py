"""Sums and differences with two-digit numbers, worked digit by digit, units first.

    34 + 58   "4+8=12,3+5+1=9"    the carry is a third summand; a missing tens digit is a 0
    82 - 35   "12-5=7,7-3=4"      borrowing puts a 1 in front of the unit and lowers the tens by one

With thinking on, that work is the thought; otherwise the answer shows it. The test's pairs are never trained on.
"""

from random import Random

from dgemma_jax.training.demo.arithmetic import Problem, put
from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.wording import draw_split

FAMILY = "two_digits"
_ONE_DIGIT = 0.2


def work(problem: Problem) -> str:
    """The steps from the units to the tens: one line that holds every digit of the result."""
    (a_tens, a_unit), (b_tens, b_unit) = divmod(problem.a, 10), divmod(problem.b, 10)
    if problem.sign == "+":
        units = a_unit + b_unit
        carry = "+1" if units > 9 else ""
        return f"{a_unit}+{b_unit}={units},{a_tens}+{b_tens}{carry}={a_tens + b_tens + units // 10}"
    if a_unit < b_unit:
        a_unit, a_tens = a_unit + 10, a_tens - 1
    return f"{a_unit}-{b_unit}={a_unit - b_unit},{a_tens}-{b_tens}={a_tens - b_tens}"


def _make(rng: Random) -> Problem:
    a = rng.randrange(10, 100)
    b = rng.randrange(1, 10) if rng.random() < _ONE_DIGIT else rng.randrange(10, 100)
    if rng.random() < 0.5:
        return Problem(max(a, b), "-", min(a, b))
    return Problem(a, "+", b) if rng.random() < 0.5 else Problem(b, "+", a)


def _pair(problem: Problem) -> str:
    """What is held out: a difference, or a sum together with its mirror image."""
    if problem.sign == "+":
        return f"{min(problem.a, problem.b)} + {max(problem.a, problem.b)}"
    return f"{problem.a} - {problem.b}"


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A problem in digits, put in one of arithmetic's wordings."""
    problem = draw_split(rng, split, _make, _pair)
    question = put(rng, problem, str(problem.a), str(problem.b))
    if thinking:
        return ask(FAMILY, question, problem.sentence, work(problem))
    return ask(FAMILY, question, f"{work(problem)}, so {problem.sentence}")
