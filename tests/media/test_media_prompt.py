"""Placeholders become soft tokens: as many as each picture has, and for a video with the time of each frame."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, ModelConfig, ProcessorConfig, VisionConfig
from dgemma_jax.inputs import check_images
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.image import to_patches
from dgemma_jax.media.patches import Patches
from dgemma_jax.media.prompt import Film, Picture, expand
from dgemma_jax.prompt.tokenizer import Tokenizer

PROCESSOR = ProcessorConfig(patch_size=8, pooling_kernel_size=2, max_soft_tokens=16)
TOKENIZER = Tokenizer.from_folder(Path(__file__).parents[2] / "checkpoints" / "demo")
OPEN, SOFT, CLOSE, VIDEO = (TOKENIZER.token_id(name) for name in ("<|image>", "<|image|>", "<image|>", "<|video|>"))
VISION = VisionConfig(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
    patch_size=8,
    pooling_kernel_size=2,
)
CONFIG = dataclasses.replace(
    DIFFUSION_GEMMA_26B_A4B, vision=VISION, image_token_id=SOFT, boi_token_id=OPEN, eoi_token_id=CLOSE
)


def patches(width: int, height: int) -> Patches:
    return to_patches(Image.new("RGB", (width, height), "teal"), PROCESSOR)


def text(ids: list[int]) -> str:
    return TOKENIZER.decode(ids)


SQUARE, STRIP = patches(64, 64), patches(100, 10)  # 16 and 12 soft tokens


def test_a_picture_takes_the_place_of_its_placeholder() -> None:
    ids = TOKENIZER.encode("See <|image|> and <|image|>!")
    made = expand(ids, [Picture(SQUARE), Picture(STRIP)], CONFIG, TOKENIZER)
    assert text(made.tokens) == f"See <|image>{'<|image|>' * 16}<image|> and <|image>{'<|image|>' * 12}<image|>!"


def test_a_film_is_its_frames_with_their_times() -> None:
    made = expand(TOKENIZER.encode("A<|video|>B"), [Film([(0.0, STRIP), (61.9, STRIP)])], CONFIG, TOKENIZER)
    frame = f"<|image>{'<|image|>' * 12}<image|>"
    assert text(made.tokens) == f"A00:00 {frame} 01:01 {frame}B"
    assert VIDEO not in made.tokens


def test_images_stay_as_they_are_and_make_one_padded_array_for_who_wants_it() -> None:
    media = [Picture(STRIP), Film([(0.0, SQUARE), (1.0, STRIP)])]
    made = expand([SOFT, VIDEO], media, CONFIG, TOKENIZER)
    assert made.images == (STRIP, SQUARE, STRIP)
    assert made.patches is not None and made.patch_positions is not None
    assert made.patches.shape == (3, 64, 192) and made.patch_positions.shape == (3, 64, 2)
    for index, image in enumerate(made.images):
        real = len(image.patches_NP)
        np.testing.assert_array_equal(made.patches[index, :real], image.patches_NP)
        np.testing.assert_array_equal(made.patch_positions[index, :real], image.position_N2)
        assert (made.patch_positions[index, real:] == -1).all() and not made.patches[index, real:].any()


def test_the_model_accepts_what_was_expanded() -> None:
    made = expand([5, SOFT, SOFT, VIDEO], [Picture(SQUARE), Picture(STRIP), Film([(3, STRIP)])], CONFIG, TOKENIZER)
    tokens = np.asarray([made.tokens])
    assert check_images(CONFIG, tokens, made.images, None) == made.images
    stacked = check_images(CONFIG, tokens, made.patches, made.patch_positions)
    assert stacked is not None and [image.digest for image in stacked] == [image.digest for image in made.images]


def test_a_prompt_takes_the_videos_that_a_request_may_hold_and_no_more_patches_than_it_says() -> None:
    """With the sizes of the published model: 32 frames of 70 soft tokens of 9 patches."""
    config = dataclasses.replace(CONFIG, vision=dataclasses.replace(VISION, patch_size=1, pooling_kernel_size=3))

    def image(soft_tokens: int) -> Patches:
        return Patches(np.zeros((9 * soft_tokens, 3)), np.zeros((9 * soft_tokens, 2)), soft_tokens)

    videos = [Film([(0.0, image(66))] * 32)] * 16
    assert len(expand([VIDEO] * 16, videos, config, TOKENIZER).images) == 16 * 32
    wanted = "at most 327,680 patches, found 332,640 in 513 images and frames, each padded"
    with pytest.raises(MediaError, match=wanted):
        expand([SOFT] + [VIDEO] * 16, [Picture(image(1089)), *videos], config, TOKENIZER)


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, vision=None)])
def test_a_prompt_without_media_stays_as_it_is(config: ModelConfig) -> None:
    made = expand([5, 6, 7], [], config, TOKENIZER)
    assert (made.tokens, made.images, made.patches, made.patch_positions) == ([5, 6, 7], (), None, None)


@pytest.mark.parametrize(
    ("ids", "media", "message"),
    [
        ([SOFT], [], "wanted picture; found none"),
        ([5], [Picture(SQUARE)], "wanted none; found picture"),
        ([SOFT, SOFT], [Picture(SQUARE)], "wanted picture, picture; found picture"),
        ([VIDEO], [Picture(SQUARE)], "wanted film; found picture"),
        ([SOFT, VIDEO], [Film([(0, STRIP)]), Picture(SQUARE)], "wanted picture, film; found film, picture"),
        ([VIDEO], [Film([])], "wanted a video with at least one frame"),
    ],
)
def test_placeholders_and_media_must_agree(ids: list[int], media: list[Picture | Film], message: str) -> None:
    with pytest.raises(MediaError, match=message):
        expand(ids, media, CONFIG, TOKENIZER)


def test_a_text_only_checkpoint_reads_no_media() -> None:
    with pytest.raises(MediaError, match="no vision tower: it reads text only, found picture"):
        expand([SOFT], [Picture(SQUARE)], dataclasses.replace(CONFIG, vision=None), TOKENIZER)
