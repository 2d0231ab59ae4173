"""What a conversion changes of the numbers on their way: their dtype, or the bits of the matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dgemma_jax.checkpoint.names import Entry
from dgemma_jax.checkpoint.orbax_parameters import stored_entries
from dgemma_jax.checkpoint.quantize import Kind, is_quantizable, quantized_arrays
from dgemma_jax.checkpoint.quantized_shards import forms
from tools.convert_layouts import Piece, Source


class Changed:
    """A source with other numbers.

    Matrices are quantised from what is stored, as `dgemma_jax.load` does it; all else takes `dtype`. What is quantised
    in the source stays as it is.
    """

    def __init__(self, source: Source, dtype: np.dtype | None, kind: Kind | None) -> None:
        self.layout, self.kind = source.layout, source.kind or kind
        self._source, self._dtype = source, dtype
        self._stored = {self._changed(piece): piece for piece in source.pieces}
        self.pieces = list(self._stored)

    def read(self, pieces: Sequence[Piece]) -> Iterator[tuple[Entry, np.ndarray]]:
        for entry, value in self._source.read([self._stored[piece] for piece in pieces]):
            if self._quantizes(entry):
                assert self.kind is not None
                arrays = quantized_arrays(value, entry.path, self.kind)
                yield from zip(stored_entries(entry, self.kind), arrays, strict=True)
            else:
                yield entry, value.astype(self._dtype_of(entry, value.dtype), copy=False)

    def _quantizes(self, entry: Entry) -> bool:
        return self._source.kind is None and self.kind is not None and is_quantizable(entry.path)

    def _dtype_of(self, entry: Entry, stored: np.dtype) -> np.dtype:
        return stored if self._dtype is None or is_quantizable(entry.path[:-1]) else self._dtype

    def _changed(self, piece: Piece) -> Piece:
        found: list[tuple[Entry, np.dtype]] = []
        for entry, dtype in zip(piece.entries, piece.dtypes, strict=True):
            if self._quantizes(entry):
                assert self.kind is not None
                made = forms(entry.path, entry.shape, self.kind)
                found += zip(stored_entries(entry, self.kind), (form.dtype for form in made), strict=True)
            else:
                found.append((entry, self._dtype_of(entry, dtype)))
        return Piece(*map(tuple, zip(*found, strict=True)))
