"""A call as it may go wrong: declined, twice, of another tool, or with names and values that are not the asked ones."""

from collections.abc import Sequence
from random import Random

from dgemma_jax.training.demo.example import Message, assistant, call
from dgemma_jax.training.demo.tool_declared import Tool
from dgemma_jax.training.demo.tool_no_call import decline
from dgemma_jax.training.demo.tool_request import Request
from dgemma_jax.training.demo.tool_values import Value

LONGEST_PIECE = 3
"""Letters or digits that are written twice or left out."""


def mistaken_call(rng: Random, request: Request, tools: Sequence[Tool], thinking: bool) -> Message:
    """A wrong answer to a question that needs the one call of `request`, where `tools` are declared."""
    kind, name, arguments = rng.random(), request.tool.name, dict(sorted(request.arguments.items()))
    others = [tool.name for tool in tools if tool.name != name]
    if kind < 0.25:
        return decline(thinking)
    if kind < 0.35:
        return _calling(name, [arguments, arguments], thinking)
    if kind < 0.5 and others:
        return _calling(rng.choice(others), [arguments], thinking)
    if not arguments or rng.random() < 0.15:
        return _calling(_stumbled(rng, name), [arguments], thinking)
    return _calling(name, [_mixed_up(rng, arguments)], thinking)


def _calling(name: str, calls: Sequence[dict[str, Value]], thinking: bool) -> Message:
    thought = f"I call {name}." if thinking else None
    return assistant(None, thought, [call(name, arguments, number) for number, arguments in enumerate(calls)])


def _mixed_up(rng: Random, arguments: dict[str, Value]) -> dict[str, Value]:
    """The arguments with one left out, or with a value that is another's, begins or ends as another, or has a slip."""
    key = rng.choice(list(arguments))
    value, others = arguments[key], [arguments[other] for other in arguments if other != key]
    kind = rng.random()
    if kind < 0.1:
        return {other: kept for other, kept in arguments.items() if other != key}
    if kind < 0.3 and others:
        return arguments | {key: rng.choice(others)}
    texts = [other for other in others if isinstance(other, str)]
    if kind < 0.55 and texts and isinstance(value, str):
        first, second = rng.sample((value, rng.choice(texts)), 2)
        return arguments | {key: first[: rng.randint(1, LONGEST_PIECE)] + second[rng.randint(1, LONGEST_PIECE) :]}
    if isinstance(value, bool):
        return arguments | {key: not value}
    slip = _stumbled(rng, value) if isinstance(value, str) else int(_stumbled(rng, str(abs(int(value)))))
    return arguments | {key: slip}


def _stumbled(rng: Random, text: str) -> str:
    """A text with a few letters or digits twice or left out."""
    start = rng.randrange(len(text))
    stop = min(len(text), start + rng.randint(1, LONGEST_PIECE))
    if rng.random() < 0.5 and stop - start < len(text):
        return text[:start] + text[stop:]
    return text[:stop] + text[start:]
