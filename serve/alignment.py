"""Which tokens stand in the text of an answer, and how much of each: what `logprobs` are told of.

    token --read--> held --wrote(text)--> queued --show(characters)--> TokenText, ...
                     |                       |
                  forget: a call's        behind a stop string: never shown

A character may take several tokens, newlines before an answer are not shown, and a stop string may end inside a token.
So a token is shown with the last character it completes, and only what the text has of it: joined, the bytes of the
tokens are the text, wherever canvases and chunks are cut.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable

from serve.engine import PlainText, TokenLogprob, TokenText


class Alignment:
    """One answer's tokens in step with its text; every method is called in the order of the tokens."""

    def __init__(self, text: PlainText) -> None:
        self._text = text
        self._held: list[TokenText] = []  # read, and not written yet
        self._queue: deque[TokenText] = deque()  # written, and not shown yet
        self._due = 0  # characters that were shown, of tokens that are still queued

    def read(self, token: int, logprob: TokenLogprob) -> None:
        """A token of the answer or of a call, before what comes of it. Markers write nothing."""
        if not self._text.is_marker(token):
            self._held.append(TokenText(self._text.token_bytes(token), 0, logprob))

    def forget(self) -> None:
        """The tokens held write no text of their own: they were a call."""
        self._held = []

    def wrote(self, text: str) -> None:
        """Text of the answer. The tokens held wrote it, and the last one completed it; without any it goes untold."""
        if not text:
            return
        if not text.startswith("\n"):
            self._drop_newlines()
        if self._held:
            self._held[-1] = dataclasses.replace(self._held[-1], characters=len(text))
            self._queue += self._held
            self._held = []
        else:
            self._queue.append(TokenText(b"", len(text), TokenLogprob(0.0, ())))

    def show(self, characters: int) -> tuple[TokenText, ...]:
        """The tokens that these next characters of the text complete."""
        self._due += characters
        ready = 0
        for place, token in enumerate(self._queue, start=1):
            if token.characters > self._due:
                break
            if token.characters:
                self._due -= token.characters
                ready = place
        return _told(self._queue.popleft() for _ in range(ready))

    def end(self) -> tuple[TokenText, ...]:
        """The token that the end of the text cut, as far as it is shown."""
        before, shown = b"", []
        while self._due and self._queue:
            token = self._queue.popleft()
            if token.characters:
                whole = (before + token.written).decode("utf-8", "surrogateescape")
                kept = whole[: self._due].encode("utf-8", "surrogateescape")[len(before) :]
                token, self._due = dataclasses.replace(token, written=kept, characters=self._due), 0
            before += token.written
            shown.append(token)
        return _told(shown)

    def _drop_newlines(self) -> None:
        """Takes away the newlines that stand before the first text that is written."""
        while self._held and not (rest := self._held[0].written.lstrip(b"\n")):
            del self._held[0]
        if self._held:
            self._held[0] = dataclasses.replace(self._held[0], written=rest)


def _told(tokens: Iterable[TokenText]) -> tuple[TokenText, ...]:
    """Without those that only stand for characters."""
    return tuple(token for token in tokens if token.written)
