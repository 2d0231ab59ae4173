"""Tools of a chat request: which functions the model is told of, and which result answers which call.

The chat format has no call ids: results follow calls in the calls' order. Clients may send them in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from serve.errors import InvalidRequestError
from serve.json_size import json_tokens
from serve.messages import AssistantMessage, Message, ToolMessage
from serve.schema import ChatRequest, NamedTool

_MOST_TOKENS = 200_000
"""Strings, brackets and commas of all tools, and of the arguments of all calls: templates take seconds for so many.
More do not fit 262,144 positions: each takes more than one token of the prompt."""

_MOST_PAIRS = 1_000_000
"""Calls times results, of all messages: templates look for the one among the others."""

UNDECLARED = 0
"""How many calls a reply may have when no tools are declared: what looks like one is what the model had to say."""


def declared(request: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools that the model may call, as OpenAI writes them; None where there are none.

    With `tool_choice: "none"` the model does not hear of them.

    Raises:
        InvalidRequestError: two tools of one name, or tools that hold too much.
    """
    if request.tools and json_tokens(msgspec.json.encode(request.tools), _MOST_TOKENS) > _MOST_TOKENS:
        raise _too_much("The tools", "tools")
    names: set[str] = set()
    for index, tool in enumerate(request.tools or ()):
        if tool.function.name in names:
            raise InvalidRequestError(
                f"Two tools are named `{tool.function.name}`",
                param=f"tools[{index}].function.name",
                code="invalid_value",
            )
        names.add(tool.function.name)
    return None if request.tool_choice == "none" else msgspec.to_builtins(request.tools or None)


def _too_much(what: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{what} hold too much: wanted at most {_MOST_TOKENS} strings, brackets and commas, found more",
        param=param,
        code="invalid_value",
    )


def most_calls(request: ChatRequest) -> int | None:
    """How many calls the reply may have; None: any number."""
    if not request.tools or request.tool_choice == "none":
        return UNDECLARED
    return None if request.parallel_tool_calls and not isinstance(request.tool_choice, NamedTool) else 1


def in_order(messages: Sequence[Message]) -> Iterator[tuple[int, Message]]:
    """The messages with their places in the request; results of tools in the order of their calls.

    Raises:
        InvalidRequestError: a result without its call, a call without its result, or arguments that hold too much.
    """
    _require_few_arguments(messages)
    place, pairs = 0, 0
    while place < len(messages):
        message = messages[place]
        yield place, message
        place += 1
        results = _results(messages, place)
        calls = (message.tool_calls if isinstance(message, AssistantMessage) else None) or []
        if (pairs := pairs + len(calls) * len(results)) > _MOST_PAIRS:
            raise InvalidRequestError(
                f"Too many calls and results: wanted at most {_MOST_PAIRS} pairs of them, found more",
                param=f"messages[{place - 1}].tool_calls",
                code="invalid_value",
            )
        if calls or results:
            yield from _matched([call.id for call in calls], results, place - 1)
        place += len(results)


def _require_few_arguments(messages: Sequence[Message]) -> None:
    left = _MOST_TOKENS
    for place, message in enumerate(messages):
        for index, call in enumerate((isinstance(message, AssistantMessage) and message.tool_calls) or ()):
            left -= json_tokens(call.function.arguments.encode(), left)
            if left < 0:
                raise _too_much(
                    "The arguments of all calls", f"messages[{place}].tool_calls[{index}].function.arguments"
                )


def _results(messages: Sequence[Message], start: int) -> dict[int, ToolMessage]:
    """The run of results from `start` on, by place."""
    found: dict[int, ToolMessage] = {}
    for place in range(start, len(messages)):
        message = messages[place]
        if not isinstance(message, ToolMessage):
            break
        found[place] = message
    return found


def _matched(calls: list[str], results: dict[int, ToolMessage], caller: int) -> list[tuple[int, ToolMessage]]:
    known = set(calls)
    if len(known) < len(calls):
        raise InvalidRequestError(
            "Two calls of one message have the same id", param=f"messages[{caller}].tool_calls", code="invalid_value"
        )
    answers: dict[str, int] = {}
    for place, result in results.items():
        if result.tool_call_id not in known or result.tool_call_id in answers:
            wanted = "one" if result.tool_call_id not in known else "one result"
            raise InvalidRequestError(
                f"A result of a tool answers a call of the assistant message before it: wanted {wanted} with the id "
                f"`{result.tool_call_id}`, found {'none' if wanted == 'one' else 'two'}",
                param=f"messages[{place}].tool_call_id",
                code="invalid_value",
            )
        answers[result.tool_call_id] = place
    missing = [call for call in calls if call not in answers]
    if missing:
        raise InvalidRequestError(
            "Each call needs its result, a message of role `tool`, right after this one: found none for "
            + ", ".join(missing),
            param=f"messages[{caller}].tool_calls",
            code="invalid_value",
        )
    return [(answers[call], results[answers[call]]) for call in calls]
