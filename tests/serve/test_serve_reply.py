"""However a reply is cut into canvases and pieces, the client reads the same text and counts."""

from __future__ import annotations

import itertools

from fake_engine import CLOSE_THOUGHT, END, OPEN_THOUGHT, FakeParser
from hypothesis import given
from hypothesis import strategies as st

from serve.engine import Canvas
from serve.reply import Reply, StopCutter

LETTERS = st.text("ab" + OPEN_THOUGHT + CLOSE_THOUGHT + END, max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


def cuts_of(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def read(parts: list[str], stops: list[str]) -> tuple[str, str, int, int, str | None]:
    reply = Reply(FakeParser(), stops, include_reasoning=True)
    pieces = []
    for part in parts:
        pieces += reply.push(Canvas(tuple(map(ord, part)), 1))
        if reply.finish_reason:
            break
    if reply.finish_reason is None:
        pieces += reply.finish("length")
    text = {kind: "".join(piece.text for piece in pieces if piece.kind == kind) for kind in ("content", "reasoning")}
    reasoning_tokens = reply._parser.reasoning_tokens
    return text["content"], text["reasoning"], reply.completion_tokens, reasoning_tokens, reply.finish_reason


def first_complete(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first, the plain way: letter by letter."""
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))]
    return text


@given(LETTERS, STOPS, st.lists(st.integers(0, 100), max_size=8))
def test_a_reply_does_not_depend_on_where_canvases_are_cut(text, stops, places):
    assert read(cuts_of(text, places), stops) == read(list(text), stops)


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
    content, _, tokens, _, reason = read(cuts_of(text, places), stops)
    if not any(stop in before for stop in stops):
        assert (content, tokens, reason) == (before, len(before + end), "stop" if end else "length")


def test_only_what_may_become_a_stop_string_is_held_back():
    cutter = StopCutter(["END", "NDX"])
    assert [cutter.push(part) for part in ("xE", "N", "x", "yN", "D")] == ["x", "", "ENx", "y", ""]
    assert cutter.finish() == "ND"
