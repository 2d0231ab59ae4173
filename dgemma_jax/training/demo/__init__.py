"""What the demo model is trained on: an endless, seeded stream of short conversations, and its tokenizer.

Nothing is downloaded; every line is written by this package. A family of conversations is one file; `mix` holds the
table of their shares. `tokenizer` trains the byte-level tokenizer on the same text.
"""

from dgemma_jax.training.demo.example import Example, Split
from dgemma_jax.training.demo.mix import FAMILIES, Family, example, test_examples
from dgemma_jax.training.demo.tokenizer import SPECIAL_TOKENS, train_tokenizer, write_tokenizer

__all__ = [
    "FAMILIES",
    "SPECIAL_TOKENS",
    "Example",
    "Family",
    "Split",
    "example",
    "test_examples",
    "train_tokenizer",
    "write_tokenizer",
]
