"""Two calls in one turn, in the order asked: one tool for two values, or two tools."""

from random import Random

from dgemma_jax.training.demo.example import Example, Split, user
from dgemma_jax.training.demo.fact_table import capitalised
from dgemma_jax.training.demo.mistakes import half_of_training
from dgemma_jax.training.demo.tool_declared import Tool, declare, draw_others, draw_tool, near_noun
from dgemma_jax.training.demo.tool_mistakes import mistaken_calls
from dgemma_jax.training.demo.tool_request import (
    Request,
    calling,
    draw_request,
    fill,
    write_both,
    write_frame,
    write_order,
    write_values,
)
from dgemma_jax.training.demo.tool_values import shown
from dgemma_jax.training.demo.wording import vary

FAMILY = "two_calls"

_JOINTS = (
    "{a}{0} and {b}{1}.",
    "{a}{0} and {b}{1}.",
    "{a}{0} and then {b}{1}.",
    "{a}{0}, then {b}{1}.",
    "{a}{0}. Then {b}{1}.",
    "{a}{0} and also {b}{1}.",
    "First {a}{0}, then {b}{1}.",
    "Can you {a}{0} and {b}{1}?",
    "Could you {a}{0} and then {b}{1}?",
    "I want you to {a}{0} and {b}{1}.",
    "I need two things: {a}{0}, and {b}{1}.",
    "I would like to {a}{0} and {b}{1}.",
    "Use the tools to {a}{0} and {b}{1}.",
)


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A question for two things and the two calls."""
    (count,) = rng.choices((2, 3, 4), weights=(60, 20, 20))
    requests, tools, question = draw_two(rng, split, count)
    calls = [request.call for request in requests]
    right = calling(calls, thinking)
    return Example(
        family=FAMILY,
        messages=[user(question), right],
        tools=declare(rng, tools),
        thinking=thinking,
        mistake=half_of_training(rng, split, right, lambda: mistaken_calls(rng, calls, thinking)),
    )


def draw_two(rng: Random, split: Split, count: int) -> tuple[list[Request], list[Tool], str]:
    """Two requests, the `count` tools that are declared, and the question for both."""
    return _one_tool(rng, split, count) if rng.random() < 0.5 else _two_tools(rng, split, count)


def _one_tool(rng: Random, split: Split, count: int) -> tuple[list[Request], list[Tool], str]:
    while len((tool := draw_tool(rng, split, most=1)).parameters) != 1:
        pass
    requests = [draw_request(rng, split, tool) for _ in range(2)]
    while requests[0] == requests[1]:
        requests[1] = draw_request(rng, split, tool)
    tools = [tool, *draw_others(rng, split, [tool], count - 1)]
    plain = near_noun(tool, tools) is not None
    ((name, first),), ((_, second),) = (tuple(request.arguments.items()) for request in requests)
    if tool.questions and not plain and rng.random() < 0.5:
        template, values = rng.choice(tool.questions), f"{shown(first)} and {shown(second)}"
    else:
        template, values = write_frame(rng, tool, plain=plain), write_both(rng, name, (first, second))
    rng.shuffle(tools)
    return requests, tools, fill(vary(rng, template), [values])


def _two_tools(rng: Random, split: Split, count: int) -> tuple[list[Request], list[Tool], str]:
    first = draw_tool(rng, split, most=2)
    while (second := draw_tool(rng, split, most=1)).noun == first.noun:
        pass
    tools = [first, second, *draw_others(rng, split, [first, second], count - 2)]
    requests = [draw_request(rng, split, tool) for tool in (first, second)]
    orders = [write_order(rng, tool, plain=near_noun(tool, tools) is not None) for tool in (first, second)]
    template = rng.choice(_JOINTS).replace("{a}", orders[0]).replace("{b}", orders[1])
    values = [write_values(rng, request) for request in requests]
    rng.shuffle(tools)
    return requests, tools, fill(vary(rng, capitalised(template)), values)
