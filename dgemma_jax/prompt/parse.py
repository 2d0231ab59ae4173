"""Generated ids to reasoning, content and tool calls, as they arrive.

    ids --> channel open ... channel close                --> Reasoning
            tool call open  call:NAME{...}  tool call close --> ToolCall (arguments as JSON text)
            everything else                               --> Content
            turn close, <eos>, tool response open         --> the end; what follows is ignored

Markers are recognised as ids, never as text: an answer that spells a marker out in letters is just content. Whatever
the cuts between pushes, the joined result is the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from dgemma_jax.prompt.detokenize import IncrementalDetokenizer
from dgemma_jax.prompt.tokenizer import Tokenizer

_HEADER = "thought\n"
_END_MARKERS = ("<turn|>", "<eos>", "<|tool_response>")
_MAX_DEPTH = 64
_CALL_HEAD = re.compile(r"\s*(?:call:|:)?\s*([\w.-]+(?::[\w.-]+)*)\s*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True)
class Reasoning:
    """A piece of the model's thought, without the channel's header."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """One finished call. `arguments` is the text of a JSON object; `index` counts the calls of this answer from 0."""

    index: int
    name: str
    arguments: str


Piece = Reasoning | Content | ToolCall


def opens_thought(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt ends inside an open thought, so that the answer starts there (see `ResponseParser`)."""
    markers = {tokenizer.token_id(name): name for name in ("<|channel>", "<channel|>", "<|turn>", "<turn|>")}
    last = next((markers[index] for index in reversed(prompt_ids) if index in markers), None)
    return last == "<|channel>"


class _State(Enum):
    CONTENT = auto()
    THOUGHT = auto()
    CALL = auto()
    ENDED = auto()


class ResponseParser:
    """Parses one answer. `starts_in_thought`: the prompt opened the thought already, header included.

    Raises `TokenizerError` for a tokenizer that lacks a marker. No sequence of ids raises.
    """

    def __init__(self, tokenizer: Tokenizer, *, starts_in_thought: bool = False) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        handlers = {
            "<|channel>": self._open_thought,
            "<channel|>": self._close_thought,
            "<|tool_call>": self._open_call,
            "<tool_call|>": self._close_call,
        }
        tokenizer.require([*handlers, *_END_MARKERS, '<|"|>'])
        self._quote = tokenizer.token_id('<|"|>')
        self._ends = frozenset(tokenizer.token_id(name) for name in _END_MARKERS)
        self._handlers = {tokenizer.token_id(name): handler for name, handler in handlers.items()}
        self._state = _State.THOUGHT if starts_in_thought else _State.CONTENT
        self._header: str | None = None  # text that may yet turn out to be the header; None = decided
        self._newlines = ""  # newlines at the end of a thought wait for text that would follow them
        self._at_start = starts_in_thought  # leading newlines are dropped until there is text
        self._call: list[int] = []
        self._calls = 0
        self._out: list[Piece] = []
        self.tokens = 0
        """Ids received up to and with the end marker, if one came."""
        self.reasoning_tokens = 0
        """Ids received inside thoughts, the markers that closed them included."""

    @property
    def ended(self) -> bool:
        """Whether an end marker was seen, or `finish` called."""
        return self._state is _State.ENDED

    def push(self, ids: Iterable[int]) -> list[Piece]:
        """What `ids` add, in order; neighbouring text of one kind is one piece."""
        run: list[int] = []  # decoding text run by run is much cheaper than id by id
        for index in ids:
            if self._state is _State.ENDED:
                break
            self.tokens += 1
            self.reasoning_tokens += self._state is _State.THOUGHT
            if index in self._ends:
                self._text(run)
                self._end()
            elif handler := self._handlers.get(index):
                self._text(run)
                handler()
            elif self._state is _State.CALL:
                self._call.append(index)
            else:
                run.append(index)
        self._text(run)
        return self._take()

    def finish(self) -> list[Piece]:
        """What was held back. A call that the end cut off in the middle is content: it must not be executed."""
        if self._state is not _State.ENDED:
            self._end()
        return self._take()

    def _text(self, run: list[int]) -> None:
        if run:
            self._write(self._detokenizer.push(run))
            run.clear()

    def _end(self) -> None:
        self._leave()
        self._state = _State.ENDED

    def _leave(self) -> None:
        """Close whatever is open, with nothing said about how it was meant to go on."""
        if self._state is _State.CALL:
            self._emit_call(repair=False)
            return
        self._write(self._detokenizer.finish())
        if self._header is not None and self._header != _HEADER.rstrip("\n"):
            rest, self._header = self._header, None
            self._write(rest)
        self._header, self._newlines = None, ""

    def _open_thought(self) -> None:
        self._leave()
        self._at_start = self._at_start or self._state is not _State.THOUGHT
        self._state, self._header = _State.THOUGHT, ""

    def _close_thought(self) -> None:
        if self._state is _State.THOUGHT:
            self._leave()
            self._state, self._at_start = _State.CONTENT, True

    def _open_call(self) -> None:
        self._leave()
        self._state, self._call = _State.CALL, []

    def _close_call(self) -> None:
        if self._state is _State.CALL:
            self._emit_call(repair=True)
            self._state = _State.CONTENT

    def _emit_call(self, *, repair: bool) -> None:
        segments = _segments(self._call, self._quote, self._tokenizer)
        found = _read_call(segments, repair=repair)
        if found is None:
            self._append(Content, '"'.join(segments))
            self._at_start = False
        else:
            self._out.append(ToolCall(self._calls, *found))
            self._calls += 1
            self._at_start = True
        self._call = []

    def _write(self, text: str) -> None:
        """Text in the state's own kind of piece, without header and without newlines around it."""
        if self._header is not None:
            self._header = (self._header + text).lstrip("\n")
            if _HEADER.startswith(self._header) and self._header != _HEADER:
                return
            text, self._header = self._header.removeprefix(_HEADER), None
        if self._at_start:
            text = text.lstrip("\n")
        if not text:
            return
        self._at_start = False
        if self._state is not _State.THOUGHT:
            self._append(Content, text)
            return
        body = text.rstrip("\n")
        if body:
            self._append(Reasoning, self._newlines + body)
            self._newlines = ""
        self._newlines += text[len(body) :]

    def _append(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        if self._out and isinstance(last := self._out[-1], kind):
            self._out[-1] = kind(last.text + text)
        elif text:
            self._out.append(kind(text))

    def _take(self) -> list[Piece]:
        out, self._out = self._out, []
        return out


def _segments(ids: Sequence[int], quote: int, tokenizer: Tokenizer) -> list[str]:
    """The text between quote tokens: every second one was inside quotes."""
    runs: list[list[int]] = [[]]
    for index in ids:
        if index == quote:
            runs.append([])
        else:
            runs[-1].append(index)
    return [tokenizer.decode(run, skip_special_tokens=True) for run in runs]


class _MalformedError(Exception):
    """Not the grammar of a call."""


@dataclass(frozen=True)
class _Quoted:
    """A raw string, which stood between quote tokens: one item among the characters around it."""

    text: str


def _read_call(segments: Sequence[str], *, repair: bool) -> tuple[str, str] | None:
    """(name, arguments as JSON) of one call, or None. `repair` closes a quote and brackets that were left open."""
    head = _CALL_HEAD.match(segments[0])
    if head is None:
        return None
    body = [segments[0][head.end() :], *segments[1:]]
    if body == [""]:
        return (head[1], "{}") if repair else None
    if repair:
        body = _closed(body)
    if len(body) % 2 == 0:
        return None
    body[-1] = body[-1].rstrip()
    if body[0].startswith("(") and body[-1].endswith(")"):  # call:name(key:value)
        body[-1] = body[-1][:-1] + "}"
        body[0] = "{" + body[0][1:]
    items: list[str | _Quoted] = []
    for place, segment in enumerate(body):
        items.extend([_Quoted(segment)] if place % 2 else segment)
    try:
        return head[1], _ArgumentReader(items).read()
    except _MalformedError:
        return None


def _closed(segments: list[str]) -> list[str]:
    """The same segments with an open string ended before the brackets that close the call, and those brackets added."""
    closing = {"{": "}", "[": "]", "(": ")"}
    missing = ""
    for character in "".join(segments[::2]):
        if character in closing:
            missing = closing[character] + missing
        elif missing.startswith(character):
            missing = missing[1:]
    if len(segments) % 2:
        return [*segments[:-1], segments[-1] + missing]
    return [*segments[:-1], segments[-1].removesuffix(missing), missing]


def _is_number(word: str) -> bool:
    # A number too large for a float is a valid JSON number, but readers turn it into an infinity or refuse it.
    return _NUMBER.fullmatch(word) is not None and math.isfinite(float(word))


class _ArgumentReader:
    """Recursive descent over the items of `{key:value,...}`, writing JSON text; numbers keep their digits.

    Forgives what leaves no doubt: spaces, a comma too many, JSON's own quotes, and words without quotes.
    """

    def __init__(self, items: Sequence[str | _Quoted]) -> None:
        self._items = items
        self._place = 0

    def read(self) -> str:
        self._skip_space()
        if self._peek() != "{":
            raise _MalformedError
        result = self._value(0)
        self._skip_space()
        if self._peek() is not None:
            raise _MalformedError
        return result

    def _peek(self) -> str | _Quoted | None:
        return self._items[self._place] if self._place < len(self._items) else None

    def _next(self) -> str | _Quoted | None:
        item = self._peek()
        self._place += 1
        return item

    def _skip_space(self) -> None:
        while isinstance(item := self._peek(), str) and item.isspace():
            self._place += 1

    def _value(self, depth: int) -> str:
        if depth > _MAX_DEPTH:
            raise _MalformedError
        self._skip_space()
        item = self._peek()
        if item == "{":
            return self._object(depth)
        if item == "[":
            return self._list(depth)
        if isinstance(item, _Quoted) or item == '"':
            return json.dumps(self._string(), ensure_ascii=False)
        word = self._word(",}]")
        return _WORDS.get(word) or (word if _is_number(word) else json.dumps(word, ensure_ascii=False))

    def _object(self, depth: int) -> str:
        fields: dict[str, str] = {}
        for _ in self._elements("}"):
            item = self._peek()
            key = self._string() if isinstance(item, _Quoted) or item == '"' else self._word(":")
            self._skip_space()
            if self._next() != ":":
                raise _MalformedError
            fields[key] = self._value(depth + 1)
        return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {fields[key]}" for key in fields) + "}"

    def _list(self, depth: int) -> str:
        return "[" + ", ".join([self._value(depth + 1) for _ in self._elements("]")]) + "]"

    def _elements(self, closing: str) -> Iterator[None]:
        """Step over the brackets and commas around elements; the caller reads one element at each yield."""
        self._next()
        self._skip_space()
        while self._peek() != closing:
            yield
            self._skip_space()
            if self._peek() == ",":
                self._next()
                self._skip_space()
            elif self._peek() != closing:
                raise _MalformedError
        self._next()

    def _string(self) -> str:
        item = self._next()
        if isinstance(item, _Quoted):
            return item.text
        written, escaped = "", False
        while (item := self._next()) != '"' or escaped:
            if not isinstance(item, str):
                raise _MalformedError
            escaped = item == "\\" and not escaped
            written += item
        try:  # an escape may name half a character, which no UTF-8 can carry
            return str(json.loads(f'"{written}"', strict=False)).encode("utf-8", "replace").decode()
        except ValueError:
            return written

    def _word(self, stops: str) -> str:
        start = self._place
        while isinstance(item := self._peek(), str) and item not in stops:
            if item in "{}[],":
                raise _MalformedError
            self._place += 1
        word = "".join(item for item in self._items[start : self._place] if isinstance(item, str)).strip()
        if not word:
            raise _MalformedError
        return word
