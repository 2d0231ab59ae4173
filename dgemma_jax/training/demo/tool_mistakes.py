"""Calls as they may go wrong: declined, twice, of another tool, or with names and values that were not asked for."""

from collections.abc import Sequence
from random import Random

from dgemma_jax.training.demo.example import Message
from dgemma_jax.training.demo.mistakes import LONGEST_PIECE, stumbled
from dgemma_jax.training.demo.tool_declared import Tool
from dgemma_jax.training.demo.tool_no_call import decline
from dgemma_jax.training.demo.tool_request import Call, Request, calling
from dgemma_jax.training.demo.tool_values import Value


def mistaken_call(rng: Random, request: Request, tools: Sequence[Tool], thinking: bool) -> Message:
    """A wrong answer to a question that needs the one call of `request`, where `tools` are declared."""
    kind, (name, arguments) = rng.random(), request.call
    others = [tool.name for tool in tools if tool.name != name]
    if kind < 0.25:
        return decline(thinking)
    if kind < 0.35:
        return calling([request.call, request.call], thinking)
    if kind < 0.5 and others:
        return calling([(rng.choice(others), arguments)], thinking)
    return calling([_mixed_up(rng, request.call, [request.call])], thinking)


def mistaken_calls(rng: Random, calls: Sequence[Call], thinking: bool) -> Message:
    """A wrong answer to a question that needs both calls: one of them alone or twice, the other first, or a slip."""
    kind, place = rng.random(), rng.randrange(2)
    one, other = calls[place], calls[1 - place]
    if kind < 0.2:
        return calling([one], thinking)
    if kind < 0.3:
        return calling([one, one], thinking)
    if kind < 0.4:
        return calling(calls[::-1], thinking)
    wrong = _mixed_up(rng, one, calls)
    return calling([wrong, other] if place == 0 else [other, wrong], thinking)


def _mixed_up(rng: Random, call: Call, calls: Sequence[Call]) -> Call:
    """One of the calls with a slip in its name or a value, with an argument less, or with some of another's value."""
    name, arguments = call
    if not arguments or rng.random() < 0.15:
        return stumbled(rng, name), arguments
    key, kind = rng.choice(list(arguments)), rng.random()
    value = arguments[key]
    others = [other for _, filled in calls for other in filled.values() if other != value]
    if kind < 0.1:
        return name, {other: kept for other, kept in arguments.items() if other != key}
    if kind < 0.3 and others:
        return name, arguments | {key: rng.choice(others)}
    texts = [other for other in others if isinstance(other, str)]
    if kind < 0.55 and texts and isinstance(value, str):
        return name, arguments | {key: _blended(rng, value, rng.choice(texts))}
    return name, arguments | {key: _slipped(rng, value)}


def _blended(rng: Random, value: str, other: str) -> str:
    """The beginning of one and what is behind that of the other."""
    first, second = rng.sample((value, other), 2)
    return first[: rng.randint(1, LONGEST_PIECE)] + second[rng.randint(1, LONGEST_PIECE) :]


def _slipped(rng: Random, value: Value) -> Value:
    if isinstance(value, bool):
        return not value
    return stumbled(rng, value) if isinstance(value, str) else int(stumbled(rng, str(abs(int(value)))))
