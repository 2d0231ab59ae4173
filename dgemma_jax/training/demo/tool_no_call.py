"""Tools are declared, but none fits: ordinary questions are answered as ever, other requests are declined."""

import re
from collections.abc import Callable
from random import Random

from dgemma_jax.training.demo import arithmetic, capitals, facts, greetings
from dgemma_jax.training.demo.example import Example, Split, assistant, user
from dgemma_jax.training.demo.tool_declared import Tool, declare, draw_others, draw_tool
from dgemma_jax.training.demo.tool_request import draw_request, write_question

FAMILY = "no_call"
DECLINED = "I have no tool for that."
THOUGHT = "No tool fits."

_ORDINARY: tuple[Callable[[Random, Split, bool], Example], ...] = (
    arithmetic.draw,
    capitals.draw,
    facts.draw,
    greetings.draw,
)


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A question that no declared tool answers."""
    (count,) = rng.choices((1, 2, 3, 4), weights=(35, 35, 15, 15))
    asked, answer, noun = _ordinary(rng, split) if rng.random() < 0.5 else _declined(rng, split)
    tools: list[Tool] = []
    while len(tools) < count:
        tools = [tool for tool in draw_others(rng, split, (), count) if not _fits(tool, f"{asked} {noun}")]
    return Example(
        family=FAMILY,
        messages=[user(asked), assistant(answer, THOUGHT if thinking else None)],
        tools=declare(rng, tools),
        thinking=thinking,
    )


def _ordinary(rng: Random, split: Split) -> tuple[str, str, str]:
    """Question, answer and an empty noun."""
    example = rng.choice(_ORDINARY)(rng, split, False)
    return example.messages[-2]["content"], example.messages[-1]["content"], ""


def _declined(rng: Random, split: Split) -> tuple[str, str, str]:
    """Question, answer and the noun of the tool that it would need; "Add 3 and 4." needs none."""
    while (tool := draw_tool(rng, split)).verb == "add":
        pass
    return write_question(rng, draw_request(rng, split, tool), plain=False), DECLINED, tool.noun


def _fits(tool: Tool, asked: str) -> bool:
    """Whether the words may well be meant for the tool: they name its noun, or it can do sums."""
    return tool.verb == "add" or tool.noun in re.findall(r"[a-z]+", asked.lower())
