"""Prompts with images on their way into the cache: one group at a time, and only what is not there yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from golden import reading

from dgemma_jax import Engine, GenerationConfig, Model, Request, stream
from dgemma_jax.buckets import ImageGroup, image_groups
from dgemma_jax.engine import Answer
from dgemma_jax.engine.plan import plan
from dgemma_jax.engine.prefix import PrefixStore
from dgemma_jax.engine.reading import Reading
from dgemma_jax.media.patches import Patches, split

SETTINGS = GenerationConfig(max_denoising_steps=3, entropy_bound=2.0, eos_token_ids=(3, 4, 5))
CHUNK = 16


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over a prompt reads one image of the goldens, and the tower two."""
    monkeypatch.setattr("dgemma_jax.pretrained.prefill_chunk", lambda canvas_length, platform: CHUNK)
    monkeypatch.setattr("dgemma_jax.buckets.PREFILL_BUCKETS", (CHUNK,))
    monkeypatch.setattr("dgemma_jax.buckets.MOST_PATCHES", 2 * 144)


@pytest.fixture(scope="module")
def model() -> Model:
    return dataclasses.replace(reading.model("causal_images", backend="all_experts"), generation=SETTINGS)


@pytest.fixture
def seen(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The groups that go through the vision tower."""
    groups: list[tuple[int, int]] = []
    see = Model.see

    def watched(self: Model, images: tuple[Patches, ...], group: ImageGroup) -> np.ndarray:
        groups.append((group.start, group.end))
        return see(self, images, group)

    monkeypatch.setattr(Model, "see", watched)
    return groups


def pictured(model: Model, *shades: float) -> Request:
    """A prompt with an image of each shade, of six soft tokens."""
    golden = reading.case("causal_images", "logits", "image_each")
    (image,) = split(golden["patches"][:1], golden["patch_positions"][:1], 9)
    config, tokens = model.config, [7]
    for _ in shades:
        tokens += [config.boi_token_id, *[config.image_token_id] * image.soft_tokens, config.eoi_token_id, 8]
    images = [dataclasses.replace(image, patches_NP=image.patches_NP * np.float32(shade)) for shade in shades]
    return Request(tokens=(*tokens, 9), max_new_tokens=8, patches=images)


def alone(model: Model, one: Request) -> tuple[int, ...]:
    answer = Answer()
    settings = {"max_new_tokens": one.max_new_tokens, "seed": one.seed, "generation": model.generation}
    for event in stream(model, one.tokens, patches=one.patches, **settings):
        answer = answer.after(event)
    return answer.tokens


def test_a_unit_of_work_is_one_group_of_images_or_one_pass(model: Model, seen: list[tuple[int, int]]) -> None:
    made = plan(pictured(model, 1, 0.9, 0.8, 0.7, 0.6), model.config, SETTINGS, 256, CHUNK)
    one, steps = Reading(model, made, PrefixStore(0, "off")), 0
    while not one.complete:
        one.step()
        steps += 1
        assert len(seen) == min(steps, 4)
    assert seen == [(0, 1), (1, 2), (2, 4), (4, 5)] and steps == 4 + len(made.ends)


@pytest.mark.parametrize("shades", [(1, 0.9, 0.8, 0.7, 0.6), (1, 0.9), (1,)])
def test_images_in_groups_are_answered_as_by_the_plain_path(model: Model, shades: tuple[float, ...]) -> None:
    engine, request = Engine(model, slots=1), pictured(model, *shades)
    assert engine.generate_many([request], progress=False)[0].tokens == alone(model, request)
    engine.close()


def test_a_group_that_is_cached_is_not_seen_again(model: Model, seen: list[tuple[int, int]]) -> None:
    engine = Engine(model, slots=1)
    first, second = pictured(model, 1, 0.9, 0.8, 0.7, 0.6), pictured(model, 1, 0.9, 0.8, 0.5, 0.6)
    engine.generate_many([first], progress=False)
    seen.clear()
    (answer,) = engine.generate_many([second], progress=False)
    assert answer.cached_tokens == 27, "to behind the third image, in the middle of a group"
    assert seen == [(2, 4), (4, 5)]
    seen.clear()
    (again,) = engine.generate_many([second], progress=False)
    assert again.cached_tokens == len(second.tokens) and not seen
    assert answer.tokens == again.tokens == alone(model, second)
    engine.close()


def test_neighbours_that_are_padded_alike_share_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image between the frames of two videos: nothing is padded to its size."""
    monkeypatch.undo()  # the sizes of the published model
    frames = [585, 594, 630]
    assert image_groups([*frames, 9801, *frames], 9) == [
        *[ImageGroup(0, 1, 1, 630), ImageGroup(1, 2, 1, 630), ImageGroup(2, 3, 2, 630)],
        ImageGroup(3, 4, 1, 10080),
        *[ImageGroup(4, 5, 1, 630), ImageGroup(5, 6, 1, 630), ImageGroup(6, 7, 2, 630)],
    ]


@pytest.mark.parametrize("patches", [[585] * 100, [20000] * 3, [585, 9801, 2268, 2268, 2268, 2000, 630] * 3])
def test_groups_do_not_depend_on_the_images_that_come_after(
    patches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a cached image would be rounded otherwise than it is without the cache."""
    monkeypatch.undo()
    whole = image_groups(patches, 9)
    assert [group.start for group in whole] == [0, *(group.end for group in whole[:-1])]
    assert all(group.images == 1 or group.images * group.patches <= 16384 for group in whole)
    for count in range(1, len(patches) + 1):
        groups = image_groups(patches[:count], 9)
        assert groups[-1].end == count
        assert [group._replace(end=0) for group in groups] == [group._replace(end=0) for group in whole[: len(groups)]]


def test_an_image_is_reused_with_the_bits_that_it_would_have_without(model: Model) -> None:
    """A conversation: in the first turn one image, in the next another one."""
    first, second = pictured(model, 1), pictured(model, 1, 0.9)
    (one,) = [np.asarray(model.see(first.patches, group)) for group in model.image_groups(first.patches)]
    seen = [model.see(second.patches, group) for group in model.image_groups(second.patches)]
    np.testing.assert_array_equal(np.concatenate(seen)[: len(one)], one)
