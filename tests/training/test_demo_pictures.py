"""The picture and video families: seeded, clear to see, truly answered, with colour-shape pairs kept for the test."""

import re
from collections.abc import Callable
from itertools import combinations
from math import dist
from random import Random
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from dgemma_jax.training.demo import picture_talk, picture_wordings, pictures, videos
from dgemma_jax.training.demo.example import Clip, Example, Split
from dgemma_jax.training.demo.pictures import Sight, pairs
from dgemma_jax.training.demo.scenes import (
    COLOURS,
    GREY,
    KINDS,
    PALETTE,
    Background,
    Paint,
    Scene,
    Shape,
    clear_backgrounds,
    draw_size,
)

DRAWS = {**pictures.FAMILIES, **videos.FAMILIES}
SIGHTS = {**pictures.SIGHTS, **videos.SIGHTS}
SPLITS: tuple[Split, ...] = get_args(Split)
every_family = pytest.mark.parametrize("family", sorted(DRAWS))


def frames(example: Example) -> list[Image.Image]:
    """All pictures of the example, those of clips too."""
    return [image for medium in example.media for image in (medium.frames if isinstance(medium, Clip) else (medium,))]


def seen(example: Example) -> tuple[str, ...]:
    """The prompt with its pixels, to be compared."""
    return (repr(example.prompt), *(str(hash((image.size, image.tobytes()))) for image in frames(example)))


def sights(family: str, count: int = 150) -> list[Sight]:
    rng = Random(family)
    return [SIGHTS[family](rng, split) for split in SPLITS for _ in range(count)]


def shown(scene: Scene) -> list[tuple[str, str]]:
    return [(shape.colour.name, shape.kind) for shape in scene.shapes]


def name_of(rgb: tuple[int, ...]) -> str:
    """The name of the nearest colour."""
    named = {**PALETTE, "grey": GREY}
    return min(named, key=lambda name: dist(named[name], rgb))


@every_family
def test_a_seed_fixes_words_and_pixels(family: str) -> None:
    first, again = ([seen(DRAWS[family](rng, "train", False)) for _ in range(20)] for rng in (Random(4), Random(4)))
    assert first == again
    assert len(set(first)) == 20


@every_family
def test_there_are_enough_different_test_prompts_and_none_is_trained_on(family: str) -> None:
    rng = Random(0)
    train, test = ({seen(DRAWS[family](rng, split, False)) for _ in range(300)} for split in SPLITS)
    assert len(test) >= 250
    assert not train & test


@every_family
def test_thinking_adds_a_short_thought_and_keeps_the_answer(family: str) -> None:
    for seed in range(50):
        plain, thought = (DRAWS[family](Random(seed), "train", thinking) for thinking in (False, True))
        assert (plain.family, plain.thinking, thought.thinking) == (family, False, True)
        assert "reasoning" not in plain.expected
        assert 3 <= len(thought.expected["reasoning"].split()) <= 10
        assert plain.expected["content"] == thought.expected["content"]
        assert seen(plain) == seen(thought)


@every_family
def test_the_prompt_has_one_part_for_each_medium_and_then_the_question(family: str) -> None:
    example = DRAWS[family](Random(1), "train", False)
    *parts, question = example.prompt[0]["content"]
    assert [part["type"] for part in parts] == ["video" if isinstance(m, Clip) else "image" for m in example.media]
    assert question["text"]


@every_family
def test_training_never_shows_the_pairs_that_the_test_asks_about(family: str) -> None:
    held, trained = set(pairs(family, "test")), set(pairs(family, "train"))
    assert len(held) == 4
    assert len(held | trained) == len(COLOURS) * len(KINDS)
    assert {colour for colour, _ in trained} == {*COLOURS}
    rng = Random(2)
    for _ in range(200):
        assert not held & {pair for scene in SIGHTS[family](rng, "train").scenes for pair in shown(scene)}
        assert held & {pair for scene in SIGHTS[family](rng, "test").scenes for pair in shown(scene)}


@every_family
def test_shapes_lie_inside_the_picture_and_apart_from_each_other(family: str) -> None:
    for scene in (scene for sight in sights(family) for scene in sight.scenes):
        for shape in scene.shapes:
            assert shape.size >= 0.24 * min(scene.size)
            for middle, length in zip((shape.x, shape.y), scene.size, strict=True):
                assert shape.size / 2 <= middle <= length - shape.size / 2
        for one, other in combinations(scene.shapes, 2):
            assert max(abs(one.x - other.x), abs(one.y - other.y)) >= (one.size + other.size) / 2


@every_family
def test_shapes_and_background_have_their_colours(family: str) -> None:
    for scene in (scene for sight in sights(family, 30) for scene in sight.scenes):
        image = scene.render()
        assert (image.mode, image.size) == ("RGB", scene.size)
        pixels_HWC = np.asarray(image)
        bare_HW = np.ones(pixels_HWC.shape[:2], bool)
        for shape in scene.shapes:
            x, y, half = round(shape.x), round(shape.y), int(shape.size / 2) + 2
            bare_HW[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = False
            middle = pixels_HWC[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))
            assert name_of(tuple(middle)) == shape.colour.name
        assert name_of(tuple(pixels_HWC[bare_HW].mean(0))) == scene.background.colour.name


@pytest.mark.parametrize(("kind", "cover"), [("circle", 0.785), ("square", 0.774), ("triangle", 0.5), ("star", 0.33)])
def test_a_kind_covers_its_own_share_of_its_box(kind: str, cover: float) -> None:
    black, white = Paint("black", (0, 0, 0)), Paint("white", (255, 255, 255))
    image = Scene((64, 64), Background(white), (Shape(kind, black, 32, 32, 40),)).render()
    dark = (255 - np.asarray(image, float)).mean(2).sum() / 255
    assert dark / 40**2 == pytest.approx(cover, abs=0.05)


@pytest.mark.parametrize("background", [{"slope": 14}, {"grain": 3}])
def test_light_and_grain_stay_slight(background: dict[str, int]) -> None:
    grey = Paint("grey", GREY)
    pixels = np.asarray(Scene((64, 64), Background(grey, **background), ()).render(), int)
    assert 0 < np.abs(pixels - GREY).max() <= 15


def test_every_set_of_colours_has_a_background() -> None:
    assert all(clear_backgrounds(colours) for colours in combinations(COLOURS, 4))
    assert all(clear_backgrounds(colours) for colours in combinations(COLOURS, 6)), "one that comes close"
    assert "white" in clear_backgrounds(["pink", "yellow"])
    assert "white" not in clear_backgrounds(["white"])


def test_pictures_are_small_and_mostly_square() -> None:
    sizes = [draw_size(Random(seed)) for seed in range(1000)]
    assert all(63 <= side <= 96 for size in sizes for side in size)
    assert 0.86 < sum(width == height for width, height in sizes) / 1000 < 0.95
    assert all(max(size) / min(size) in (1, 4 / 3) for size in sizes)


def colour_is_true(sight: Sight) -> None:
    (scene,) = sight.scenes
    kind, colour = re.fullmatch(r"The (\w+) is (\w+)\.", sight.answer).groups()  # type: ignore[union-attr]
    assert shown(scene).count((colour, kind)) == 1
    assert len(scene.shapes) == 1 or kind in sight.question.lower()
    assert [other for _, other in shown(scene)].count(kind) == 1


def shape_is_true(sight: Sight) -> None:
    (scene,) = sight.scenes
    if found := re.fullmatch(r"It is a (\w+)\.", sight.answer):
        assert [kind for _, kind in shown(scene)] == [found[1]]
        return
    colour, kind = re.fullmatch(r"The (\w+) shape is a (\w+)\.", sight.answer).groups()  # type: ignore[union-attr]
    assert colour in sight.question.lower()
    assert [other for name, other in shown(scene) if name == colour] == [kind]


def count_is_true(sight: Sight) -> None:
    (scene,) = sight.scenes
    number, thing = re.fullmatch(r"There (?:is|are) (\d) (\w+?)s?\.", sight.answer).groups()  # type: ignore[union-attr]
    assert f"{thing}s" in sight.question.lower()
    assert int(number) == sum(thing in ("shape", kind) for _, kind in shown(scene))
    assert (" is " in sight.answer) == (number == "1") == (not sight.answer.endswith("s."))


def position_is_true(sight: Sight) -> None:
    (scene,) = sight.scenes
    (shape,) = scene.shapes
    x, y = shape.x / scene.size[0], shape.y / scene.size[1]
    place = f"at the {'top' if y < 0.4 else 'bottom'} {'left' if x < 0.4 else 'right'}"
    if abs(x - 0.5) < 0.1 and abs(y - 0.5) < 0.1:
        place = "in the centre"
    assert sight.answer == f"The {shape.kind} is {place}."
    assert shape.kind in sight.question.lower()


def pair_is_true(sight: Sight) -> None:
    left, right = map(shown, sight.scenes)
    question = sight.question.lower()
    asked = next((kind for kind in KINDS if kind in question), None)
    if sight.answer.endswith("picture.") and asked is None:
        assert len(left) != len(right)
        assert sight.answer == ("The first picture." if len(left) > len(right) else "The second picture.")
        return
    ((colour, kind),), ((other_colour, other_kind),) = left, right
    if sight.answer.endswith("picture."):
        assert (kind == asked) != (other_kind == asked)
        assert sight.answer == ("The first picture." if kind == asked else "The second picture.")
    elif "colo" in question:
        both = f"Yes, both are {colour}."
        assert sight.answer == (
            both if colour == other_colour else f"No, the first is {colour} and the second is {other_colour}."
        )
    else:
        both = f"Yes, both are {kind}s."
        assert sight.answer == (
            both if kind == other_kind else f"No, the first is a {kind} and the second is a {other_kind}."
        )


def description_is_true(sight: Sight) -> None:
    (scene,) = sight.scenes
    things, ground = re.fullmatch(r"(.+) on an? (\w+) background\.", sight.answer).groups()  # type: ignore[union-attr]
    assert ground == scene.background.colour.name
    if len(set(shown(scene))) > 1:
        named = re.findall(r"\ban? (\w+) (\w+)", things, re.IGNORECASE)
        assert named == sorted(shown(scene), key=lambda pair: pair[1])
        assert things.count(",") == len(named) - 2 and things.count(" and ") == 1
        return
    ((colour, kind),) = set(shown(scene))
    number, *words = re.fullmatch(r"(An?|\d) (\w+) (\w+?)(s?)", things).groups()  # type: ignore[union-attr]
    many = len(scene.shapes) > 1
    assert number == (str(len(scene.shapes)) if many else "An" if colour == "orange" else "A")
    assert words == [colour, kind, "s" if many else ""]


def motion_is_true(sight: Sight) -> None:
    middles = []
    for scene in sight.scenes:
        pixels_HWC = np.asarray(scene.render(), float)
        away_HW = np.abs(pixels_HWC - scene.background.colour.rgb).sum(2) > 60
        middles.append(np.argwhere(away_HW).mean(0)[::-1] / scene.size[0])
    steps = np.diff(middles, axis=0)
    axis = int(np.abs(steps).sum(0).argmax())
    assert np.abs(steps[:, axis]).min() > 0.1 > 0.03 > np.abs(steps[:, 1 - axis]).max()
    way = (("to the left", "to the right"), ("up", "down"))[axis][int(steps[0, axis] > 0)]
    ((colour, kind),) = shown(sight.scenes[0])
    assert sight.answer == f"The {colour} {kind} moves {way}."


def first_is_true(sight: Sight) -> None:
    counts = [len(scene.shapes) for scene in sight.scenes]
    assert counts == sorted(counts) and set(counts) - {0} == {1, 2}
    ((colour, kind),) = next(shown(scene) for scene in sight.scenes if scene.shapes)
    assert shown(sight.scenes[-1])[0] == (colour, kind)
    assert sight.answer == f"The {colour} {kind} appears first."


TRUTH: dict[str, Callable[[Sight], None]] = {
    pictures.COLOUR: colour_is_true,
    pictures.SHAPE: shape_is_true,
    pictures.COUNT: count_is_true,
    pictures.POSITION: position_is_true,
    pictures.PAIR: pair_is_true,
    pictures.DESCRIBE: description_is_true,
    videos.MOTION: motion_is_true,
    videos.FIRST: first_is_true,
}


@every_family
def test_what_is_shown_makes_the_answer_true(family: str) -> None:
    for sight in sights(family):
        TRUTH[family](sight)


def test_every_question_is_put_in_many_ways_and_filled() -> None:
    put = {name: lines for name, lines in vars(picture_wordings).items() if name.isupper() and name[0] != "_"}
    assert len(put) == 13
    assert all(len(set(lines)) >= (8 if name == "COLOUR_OF_ONE" else 15) for name, lines in put.items())
    questions = [sight.question for family in SIGHTS for sight in sights(family, 100)]
    assert not [question for question in questions if "{" in question or "}" in question]
    assert any("color " in question for question in questions)


def talks(split: Split) -> list[tuple[Example, list[str]]]:
    """Conversations about one picture with their answers."""
    rng = Random(8)
    found = [picture_talk.draw(rng, split, rng.random() < 0.5) for _ in range(400)]
    return [(each, [m["content"] for m in each.messages if m["role"] == "assistant"]) for each in found]


def talked(split: Split) -> list[tuple[Example, list[tuple[str, str, str]]]]:
    """Conversations about which is which in a picture, each with its answers as family, colour and kind."""
    found = []
    for example, answers in talks(split):
        if answers[0].startswith("There"):
            continue
        colours = [re.fullmatch(r"The (\w+) is (\w+)\.", answer) for answer in answers]
        kinds = [re.fullmatch(r"The (\w+) shape is an? (\w+)\.", answer) for answer in answers]
        pairs = zip(colours, kinds, strict=True)
        told = [(pictures.COLOUR, c[2], c[1]) if c else (pictures.SHAPE, k[1], k[2]) for c, k in pairs if c or k]
        assert len(told) == len(answers) in (2, 3, 4)
        found.append((example, told))
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_a_talk_asks_once_about_each_shape_of_its_picture_and_is_told_what_is_there(split: Split) -> None:
    for example, told in talked(split):
        (image,) = frames(example)
        colours, kinds = ([pair[at] for pair in told] for at in (1, 2))
        assert len(set(colours)) == len(set(kinds)) == len(told)
        away = [np.abs(np.asarray(image, int) - PALETTE[colour]).max(-1) for colour in colours]
        assert all((away_HW < 32).sum() > 30 for away_HW in away), "every colour is there"
        asked = [message["content"] for message in example.messages if message["role"] == "user"]
        texts = [parts if isinstance(parts, str) else parts[-1]["text"] for parts in asked]
        for text, (family, colour, kind) in zip(texts, told, strict=True):
            assert (kind if family == pictures.COLOUR else colour) in text.lower()
            assert (colour if family == pictures.COLOUR else kind) not in text.lower()


@pytest.mark.parametrize("split", SPLITS)
def test_a_talk_about_numbers_says_how_many_there_are_of_each_kind_and_in_all(split: Split) -> None:
    counted = [answers for _, answers in talks(split) if answers[0].startswith("There")]
    assert len(counted) > 100
    for answers in counted:
        said = [re.fullmatch(r"There (is|are) (\d) (\w+?)(s?)\.", answer) for answer in answers]
        numbers = {found[3]: int(found[2]) for found in said if found}
        assert len(numbers) == len(answers) and all((found[2] == "1") == (found[1] == "is") for found in said if found)
        total = numbers.pop("shape")
        assert 2 <= total == sum(numbers.values()) <= 4


def test_a_talk_never_shows_what_the_single_questions_keep_for_their_tests() -> None:
    kept = {*pairs(pictures.COLOUR, "test"), *pairs(pictures.SHAPE, "test")}
    assert not [told for _, talk in talked("train") for told in talk if told[1:] in kept]
    assert all(talk[-1][1:] in pairs(talk[-1][0], "test") for _, talk in talked("test"))
