"""Token ids to text, a few at a time: what a streamed answer is made of.

A character may be spread over several tokens, and the tokens over several canvases. Incomplete bytes are held back
until the rest arrives, so every piece is whole characters and the joined pieces equal `Tokenizer.decode` of all ids.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from dgemma_jax.prompt.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Decodes one stream of ids; special tokens are skipped. Work and memory do not grow with what came before."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The characters that `ids` complete, possibly none."""
        skip = self._tokenizer.special_ids
        return self._decoder.decode(b"".join(self._tokenizer.token_bytes(index) for index in ids if index not in skip))

    def finish(self) -> str:
        """What was held back (U+FFFD, or nothing). The next `push` starts a new stream."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
