"""However a reply is cut into canvases and pieces, the client reads the same text and counts."""

from __future__ import annotations

import dataclasses
import itertools

from fake_engine import CLOSE_CALL, CLOSE_THOUGHT, END, OPEN_CALL, OPEN_THOUGHT, FakeParser
from hypothesis import given
from hypothesis import strategies as st

from serve.engine import Call, Canvas, Piece
from serve.reply import Reply, StopCutter

LETTERS = st.text("ab" + OPEN_THOUGHT + CLOSE_THOUGHT + OPEN_CALL + CLOSE_CALL + END, max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


def cuts_of(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@dataclasses.dataclass
class Read:
    """All that a client sees of a reply."""

    content: str
    reasoning: str
    calls: list[Call]
    tokens: int
    reasoning_tokens: int
    finish_reason: str | None


def read(parts: list[str], stops: list[str], most_calls: int | None = 0) -> Read:
    reply = Reply(FakeParser(), stops, include_reasoning=True, most_calls=most_calls)
    pieces = []
    for part in parts:
        pieces += reply.push(Canvas(tuple(map(ord, part)), 1))
        if reply.finish_reason:
            break
    if reply.finish_reason is None:
        pieces += reply.finish("length")
    texts = [piece for piece in pieces if isinstance(piece, Piece)]
    content, reasoning = (
        "".join(piece.text for piece in texts if piece.kind == kind) for kind in ("content", "reasoning")
    )
    calls = [piece for piece in pieces if isinstance(piece, Call)]
    return Read(content, reasoning, calls, reply.completion_tokens, reply._parser.reasoning_tokens, reply.finish_reason)


def first_complete(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first, the plain way: letter by letter."""
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))]
    return text


@given(LETTERS, STOPS, st.sampled_from([0, 1, None]), st.lists(st.integers(0, 100), max_size=8))
def test_a_reply_does_not_depend_on_where_canvases_are_cut(text, stops, most_calls, places):
    found = read(cuts_of(text, places), stops, most_calls)
    assert found == read(list(text), stops, most_calls)
    assert most_calls is None or len(found.calls) <= most_calls
    if found.finish_reason != "length":
        assert (found.finish_reason == "tool_calls") == bool(found.calls)


@given(st.text("ab", max_size=30), STOPS, st.lists(st.integers(0, 100), max_size=8))
def test_the_stop_string_that_is_complete_first_ends_the_text(text, stops, places):
    cutter = StopCutter(stops)
    out = []
    for part in cuts_of(text, places):
        out.append(cutter.push(part))
        if cutter.hit:
            break
    assert "".join(out) + cutter.finish() == first_complete(text, stops)
    assert cutter.hit == any(stop in text for stop in stops)


@given(st.text("ab" + END, max_size=30), STOPS, st.lists(st.integers(0, 100), max_size=8))
def test_nothing_after_an_end_token_is_read_or_counted(text, stops, places):
    before, end, _ = text.partition(END)
    found = read(cuts_of(text, places), stops)
    if not any(stop in before for stop in stops):
        assert (found.content, found.tokens, found.finish_reason) == (
            before,
            len(before + end),
            "stop" if end else "length",
        )


def test_only_what_may_become_a_stop_string_is_held_back():
    cutter = StopCutter(["END", "NDX"])
    assert [cutter.push(part) for part in ("xE", "N", "x", "yN", "D")] == ["x", "", "ENx", "y", ""]
    assert cutter.finish() == "ND"
