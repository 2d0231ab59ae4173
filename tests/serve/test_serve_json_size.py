"""A JSON text is counted without being parsed: never fewer than its values, in linear time whatever it holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.json_size import json_tokens

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def values_in(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(values_in, inner))


@given(VALUES, st.booleans())
def test_there_are_at_least_as_many_tokens_as_values_but_one(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert json_tokens(text, 10**9) >= json_tokens(text, 0) >= (values_in(value) > 1)
    assert json_tokens(text, values_in(value) - 2) >= values_in(value) - 1


@given(st.text())
def test_a_string_is_one_token(text: str) -> None:
    written = json.dumps([text] * 3, separators=(",", ":")).encode()
    assert json_tokens(written, 6) == 6  # "[", three strings, two commas


@pytest.mark.parametrize(
    ("text", "tokens"), [('"' + '\\"' * 10**6, 1), ('"' * (10**6 + 1), 11), ("\\" * 10**6, 0), ('"\\', 1)]
)
def test_text_that_is_cut_short_is_scanned_once(text: str, tokens: int) -> None:
    """Scanned from every quote, the first would take days."""
    assert json_tokens(text.encode(), 10) == tokens
