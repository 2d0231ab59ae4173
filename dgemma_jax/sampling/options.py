"""What a request may ask of the sampler that a checkpoint's `GenerationConfig` does not say."""

from __future__ import annotations

import dataclasses

MOST_LOGPROBS = 20  # as the OpenAI API allows


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Bounds on the drawn tokens, and what is told of the prediction. The defaults ask for nothing.

    top_k: a drawn token is one of the `top_k` likeliest; 0 is off.
    top_p: a drawn token is one of the fewest likeliest whose probability reaches `top_p`; 1 is off.
    logprobs: log-probabilities of the answer's tokens, each with those of this many likeliest ones; None is off.

    Draws explore: the canvas is the argmax of its last prediction, which `top_k` and `top_p` leave alone. They decide
    what the model sees on the way there. See `sampling/truncation.py` and `sampling/logprobs.py`.

    Raises:
        ValueError: a number outside its range.
    """

    top_k: int = 0
    top_p: float = 1.0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative (0 is off), found {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must be in [0, 1], found {self.top_p}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise ValueError(f"logprobs must be None or in [0, {MOST_LOGPROBS}], found {self.logprobs}")

    @property
    def truncates(self) -> bool:
        """Whether drawn tokens are bounded at all."""
        return self.top_k > 0 or self.top_p < 1


PLAIN = SamplingOptions()
"""Asks for nothing."""
