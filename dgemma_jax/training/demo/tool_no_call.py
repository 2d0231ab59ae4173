"""Tools are declared, but none fits: ordinary questions are answered as ever, other requests are declined."""

import re
from collections.abc import Callable
from random import Random

from dgemma_jax.training.demo import arithmetic, capitals, facts, greetings
from dgemma_jax.training.demo.example import Example, Message, Split, assistant, user
from dgemma_jax.training.demo.mistakes import half_of_training
from dgemma_jax.training.demo.tool_declared import Tool, declare, draw_others, draw_tool
from dgemma_jax.training.demo.tool_request import Request, calling, draw_request, write_question

FAMILY = "no_call"
DECLINED = "I have no tool for that."
THOUGHT = "No tool fits."
ORDINARY: dict[Split, float] = {"train": 0.3, "test": 0.5}
"""How many are ordinary questions. To see that no tool fits is what takes long to learn."""

_ORDINARY: tuple[Callable[[Random, Split, bool], Example], ...] = (
    arithmetic.draw,
    capitals.draw,
    facts.draw,
    greetings.draw,
)


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A question that no declared tool answers."""
    (count,) = rng.choices((1, 2, 3, 4), weights=(35, 35, 15, 15))
    wanted: tuple[Tool, ...] = ()
    request = None
    if rng.random() < ORDINARY[split]:
        asked, answer = _ordinary(rng, split)
    else:
        wanted = (_wanted(rng, split),)
        request = draw_request(rng, split, wanted[0])
        asked, answer = write_question(rng, request, plain=False), DECLINED
    words = " ".join((asked, *(tool.noun for tool in wanted)))
    tools: list[Tool] = []
    while len(tools) < count:
        near = wanted if split == "train" else ()
        tools = [tool for tool in draw_others(rng, split, near, count) if not _fits(tool, words)]
    right = assistant(answer, THOUGHT if thinking else None)
    return Example(
        family=FAMILY,
        messages=[user(asked), right],
        tools=declare(rng, tools),
        thinking=thinking,
        mistake=half_of_training(rng, split, right, lambda: _mistake(rng, request, tools, thinking)),
    )


def decline(thinking: bool) -> Message:
    """The answer to a request that no declared tool serves."""
    return assistant(DECLINED, THOUGHT if thinking else None)


def _mistake(rng: Random, request: Request | None, tools: list[Tool], thinking: bool) -> Message:
    """A call all the same, with the arguments that another tool would get; an ordinary question may be declined."""
    if request is None and rng.random() < 0.5:
        return decline(thinking)
    arguments = {} if request is None else request.call[1]
    return calling([(rng.choice(tools).name, arguments)], thinking)


def _ordinary(rng: Random, split: Split) -> tuple[str, str]:
    """Question and answer."""
    example = rng.choice(_ORDINARY)(rng, split, False)
    return example.messages[-2]["content"], example.messages[-1]["content"]


def _wanted(rng: Random, split: Split) -> Tool:
    """A tool to ask for; "Add 3 and 4." needs none."""
    while (tool := draw_tool(rng, split)).verb == "add":
        pass
    return tool


def _fits(tool: Tool, asked: str) -> bool:
    """Whether the words may well be meant for the tool: they name its noun, or it can do sums."""
    return tool.verb == "add" or tool.noun in re.findall(r"[a-z]+", asked.lower())
