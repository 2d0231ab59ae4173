"""What a request wants its answer to be: `response_format`, `structured_outputs`, or a `tool_choice` that calls."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from serve.engine import AnswerFormat
from serve.errors import InvalidRequestError
from serve.schema import ChatRequest, NamedTool, StructuredOutputs
from serve.tools import most_calls


def wanted(request: ChatRequest) -> AnswerFormat | None:
    """The format of the answer; None where the model decides.

    Raises:
        InvalidRequestError: the fields contradict each other, or one lacks what it needs.
    """
    text = _text(request)
    if request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool):
        return AnswerFormat(functions=_callable(request), most_calls=most_calls(request), param="tools")
    if not request.tools or request.tool_choice == "none":
        return text
    if text is None:
        return _strict(request)
    return dataclasses.replace(text, functions=_callable(request), most_calls=most_calls(request))


def _strict(request: ChatRequest) -> AnswerFormat | None:
    """Calls of declared functions only, where one is strict; arguments of those that are not are the model's own."""
    functions = [
        function if function.get("strict") else function | {"parameters": {"type": "object"}}
        for function in _callable(request)
    ]
    if not any(function.get("strict") for function in functions):
        return None
    return AnswerFormat(text=True, functions=tuple(functions), most_calls=most_calls(request), param="tools")


def _callable(request: ChatRequest) -> tuple[dict[str, Any], ...]:
    """The functions that may be called, as OpenAI declares them."""
    choice = request.tool_choice
    named = choice.function.name if isinstance(choice, NamedTool) else None
    functions = [tool.function for tool in request.tools or () if named in (None, tool.function.name)]
    if not functions:
        what = f"declares no function `{named}`" if named else "declares none"
        raise InvalidRequestError(
            f"`tool_choice` wants a call, but `tools` {what}", param="tool_choice", code="invalid_value"
        )
    return tuple(msgspec.to_builtins(function) for function in functions)


def _text(request: ChatRequest) -> AnswerFormat | None:
    given, extra = request.response_format, request.structured_outputs
    if given is None or given.type == "text":
        return None if extra is None else _extra(extra)
    if extra is not None:
        raise InvalidRequestError(
            "`structured_outputs` and `response_format` both say what the answer must be: wanted one",
            param="structured_outputs",
            code="invalid_value",
        )
    if given.type == "json_object":
        return AnswerFormat(schema={"type": "object"}, param="response_format")
    if given.json_schema is None or given.json_schema.schema is None:
        name = "response_format.json_schema" + ("" if given.json_schema is None else ".schema")
        raise InvalidRequestError(
            f'`response_format` of type "json_schema" needs `{name}`', param=name, code="missing_required_parameter"
        )
    return AnswerFormat(schema=given.json_schema.schema, param="response_format.json_schema.schema")


def _extra(extra: StructuredOutputs) -> AnswerFormat:
    given = [name for name in StructuredOutputs.__struct_fields__ if getattr(extra, name) is not None]
    if len(given) != 1:
        raise InvalidRequestError(
            f"`structured_outputs` needs one of `json`, `regex` and `choice`, found {' and '.join(given) or 'none'}",
            param="structured_outputs",
            code="invalid_value",
        )
    param = f"structured_outputs.{given[0]}"
    if extra.choice is not None:
        return AnswerFormat(choice=tuple(extra.choice), param=param)
    return AnswerFormat(schema=extra.json, regex=extra.regex, param=param)
