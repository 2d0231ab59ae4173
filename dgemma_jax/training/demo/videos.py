"""Two families of questions about short videos: which way a shape moves, and which of two shapes appears first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

from dgemma_jax.training.demo import picture_wordings as say
from dgemma_jax.training.demo.example import Clip, Example, Split
from dgemma_jax.training.demo.picture_wordings import phrase
from dgemma_jax.training.demo.pictures import Draw, Sight, example, one, pairs, unlike
from dgemma_jax.training.demo.scenes import Spot, compose, draw_spots

MOTION, FIRST = "video_motion", "video_first"
FRAMES = 4

# The way as the answer says it, and its step along x and y (y grows downwards).
WAYS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}


def _start(rng: Random, step: float, room: float, half: float) -> float:
    """Where a coordinate starts, so that the shape stays inside through all frames."""
    travel = step * (FRAMES - 1)
    return rng.uniform(half + 1 - min(travel, 0.0), room - half - 1 - max(travel, 0.0))


def motion(rng: Random, split: Split) -> Sight:
    """One shape moves evenly: about 15 % of the side a frame."""
    name, kind = rng.choice(pairs(MOTION, split))
    way = rng.choice(tuple(WAYS))
    room = rng.randint(64, 80)
    side = rng.uniform(0.25, 0.36) * room
    pace = rng.uniform(0.13, 0.17) * room
    dx, dy = (pace * sign for sign in WAYS[way])
    x, y = (_start(rng, step, room, side / 2) for step in (dx, dy))
    scene = compose(rng, (room, room), [(name, kind)], [Spot(x, y, side)], plain=True)
    (shape,) = scene.shapes
    scenes = tuple(replace(scene, shapes=(replace(shape, x=x + dx * t, y=y + dy * t),)) for t in range(FRAMES))
    answer = f"The {name} {kind} moves {way}."
    thought = f"I watch the {name} {kind} go {way.removeprefix('to the ')}."
    return Sight(scenes, phrase(rng, say.MOVES), answer, thought)


def first(rng: Random, split: Split) -> Sight:
    """A shape appears at once or after a moment, and another one later; both stay."""
    asked = rng.choice(pairs(FIRST, split))
    later = unlike(rng, FIRST, asked)
    room = rng.randint(64, 80)
    size = (room, room)
    scene = compose(rng, size, [asked, later], draw_spots(rng, size, 2), plain=True)
    begins = rng.randint(0, 1)
    joins = rng.randint(begins + 1, FRAMES - 1)
    scenes = tuple(replace(scene, shapes=scene.shapes[: (t >= begins) + (t >= joins)]) for t in range(FRAMES))
    thought = f"First {one(asked[0])} {asked[1]}, then {one(later[0])} {later[1]}."
    return Sight(scenes, phrase(rng, say.APPEARS_FIRST), f"The {asked[0]} {asked[1]} appears first.", thought)


SIGHTS: dict[str, Callable[[Random, Split], Sight]] = {MOTION: motion, FIRST: first}


def draw(family: str, rng: Random, split: Split, thinking: bool) -> Example:
    """A question of the family about one clip."""
    sight = SIGHTS[family](rng, split)
    return example(family, [Clip(tuple(scene.render() for scene in sight.scenes))], sight, thinking)


FAMILIES: dict[str, Draw] = {family: partial(draw, family) for family in SIGHTS}
