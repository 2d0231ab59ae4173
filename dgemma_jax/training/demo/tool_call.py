"""One call: some tools are declared, and the question needs exactly one of them once."""

from random import Random

from dgemma_jax.training.demo.example import Example, Split, user
from dgemma_jax.training.demo.mistakes import half_of_training
from dgemma_jax.training.demo.tool_declared import Tool, declare, draw_others, draw_tool, near_noun
from dgemma_jax.training.demo.tool_mistakes import mistaken_call
from dgemma_jax.training.demo.tool_request import Request, calling, draw_request, write_question

FAMILY = "tool_call"


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A question and the call that it needs."""
    (count,) = rng.choices((1, 2, 3, 4), weights=(35, 35, 15, 15))
    request, tools, question = draw_question(rng, split, count)
    right = calling([request.call], thinking)
    return Example(
        family=FAMILY,
        messages=[user(question), right],
        tools=declare(rng, tools),
        thinking=thinking,
        mistake=half_of_training(rng, split, right, lambda: mistaken_call(rng, request, tools, thinking)),
    )


def draw_question(rng: Random, split: Split, count: int) -> tuple[Request, list[Tool], str]:
    """A request, the `count` tools that are declared, and the question for the one that is meant."""
    tool = draw_tool(rng, split, most=3 if count < 3 else 2)
    tools = [tool, *draw_others(rng, split, [tool], count - 1)]
    request = draw_request(rng, split, tool)
    question = write_question(rng, request, plain=near_noun(tool, tools) is not None)
    rng.shuffle(tools)
    return request, tools, question
