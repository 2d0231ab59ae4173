"""Grammars of whole answers in the chat format: a thought, then text of a kind or calls of functions.

They are written in llguidance's dialect of Lark (see `dgemma_jax.grammar`), where text is never a special token:
`<|channel>` below is the token, not its letters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from dgemma_jax.prompt import schema_limits
from dgemma_jax.prompt.call_grammar import CallRules

Thought = Literal["none", "may_open", "is_open"]
"""Whether the answer may begin with a thought, or begins inside one that the prompt opened."""

_WHITESPACE = r"( |\n[ \t]{0,24})"
"""Between the parts of JSON, once: a model that is at a loss would else write spaces until the answer is full."""

_START: dict[Thought, str] = {
    "none": "start: answer",
    "may_open": "start: (<|channel> TEXT <channel|>)? answer",
    "is_open": "start: TEXT <channel|> answer",
}
_WRITTEN = {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}
"""What a rule's regular expression writes otherwise."""
_TEXT = r"TEXT: /(.|\n)*/"
ANY_TEXT = "TEXT"
"""Content of any kind, special tokens aside."""


def whole(content: str | None, calls: str | None, thought: Thought) -> str:
    """The grammar of an answer that is `content`, or where both are given one or the other.

    Args:
        content: an expression that `json_schema`, `regex` or `choice` wrote, or `ANY_TEXT`, which calls may follow.
        calls: rules that `calls` wrote.
    """
    kinds = [*([content] if content else []), *(["calls"] if calls else [])]
    answer = "TEXT calls?" if kinds == [ANY_TEXT, "calls"] else " | ".join(kinds)
    return "\n".join(["%llguidance {}", _START[thought], f"answer: {answer}", _TEXT, calls or ""])


def json_schema(schema: Mapping[str, Any]) -> str:
    """JSON text of what fits the schema. Raises ValueError for one that is too much; see `schema_limits`."""
    schema_limits.check(schema)
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE}})


def regex(pattern: str) -> str:
    """Text that a regular expression (of Rust's regex crate, without looking around) matches as a whole."""
    return "/" + re.sub(r"\\.|[/\n]", lambda found: _WRITTEN.get(found[0], found[0]), pattern, flags=re.DOTALL) + "/"


def choice(texts: Iterable[str]) -> str:
    """One of the texts. They must not be empty."""
    return "(" + " | ".join(json.dumps(text) for text in texts) + ")"


def calls(functions: Sequence[Mapping[str, Any]], most: int | None) -> str:
    """Rules for one call or several of the functions, as OpenAI declares them. `most`: 1, or None for any number.

    Raises:
        ValueError: schemas that are too large, or make no sense.
    """
    rules = CallRules()
    names = [rules.call(function["name"], function.get("parameters") or {}) for function in functions]
    one = f"<|tool_call> ({' | '.join(names)}) <tool_call|>"
    return "\n".join([f"calls: ({one})" + ("" if most == 1 else "+"), *rules.lines])
