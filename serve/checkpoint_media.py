"""Files of images and videos, as a checkpoint's vision tower reads them."""

from __future__ import annotations

from dgemma_jax.config import ProcessorConfig
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.image import patches_bytes, read_image, soft_token_budgets, to_patches
from dgemma_jax.media.prompt import Film, Picture
from dgemma_jax.media.video import iter_video
from serve.engine import Detail, MediaKind, MediumError

_MOST_PIXELS = 2**26  # 67 million: decoding takes up to 600 MB


class CheckpointMedia:
    """Decodes for a vision tower. For any thread."""

    def __init__(self, processor: ProcessorConfig) -> None:
        self._processor = processor

    def most_bytes(self, kind: MediaKind, detail: Detail) -> int:
        """As `Engine.medium_bytes`."""
        frames = self._processor.video_num_frames if kind == "video" else 1
        return frames * patches_bytes(self._processor, self._soft_tokens(kind, detail))

    def read(self, data: bytes, kind: MediaKind, detail: Detail) -> Picture | Film:
        """As `Engine.read`. Images are studied here: on the engine's thread, all answers would wait for it."""
        processor, soft_tokens = self._processor, self._soft_tokens(kind, detail)
        try:
            if kind == "video":
                frames = iter_video(data, processor)
                return Film([(at, to_patches(image, processor, soft_tokens).studied()) for at, image in frames])
            return Picture(to_patches(read_image(data, _MOST_PIXELS), processor, soft_tokens).studied())
        except MediaError as error:
            raise MediumError(str(error)) from error

    def _soft_tokens(self, kind: MediaKind, detail: Detail) -> int:
        """The most that an image or a frame becomes."""
        if kind == "video":
            return self._processor.video_max_soft_tokens
        budgets = soft_token_budgets(self._processor)
        return {"auto": self._processor.max_soft_tokens, "low": budgets[0], "high": budgets[-1]}[detail]
