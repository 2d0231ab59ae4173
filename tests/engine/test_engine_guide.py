"""Answers held to a grammar: what is settled of a canvas, when it is denoised again, and that nobody else notices."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from engine.hand_device import GENERATION, HandDevice
from engine.hand_grammar import END, Rising, is_rising
from engine.test_engine_core import Log, run, text

from dgemma_jax.engine.core import Core
from dgemma_jax.engine.events import Event, Failed, Request
from dgemma_jax.engine.guide import MOST_FILLED, MOST_TRIES, Guide, Verdict
from dgemma_jax.generate import CanvasCommitted
from dgemma_jax.grammar import GrammarError


def guide() -> Guide:
    return Guide(Rising(), 6, (END,))  # type: ignore[arg-type]


def smallest(position: int, allowed_V: np.ndarray) -> int:
    return int(np.flatnonzero(allowed_V)[0])


def nobody(position: int, allowed_V: np.ndarray) -> int:
    raise AssertionError("nothing is to be chosen")


@pytest.mark.parametrize(
    ("canvas", "room", "settled"),
    [
        ([3, 5, 9, 31, END, 0], 6, [3, 5, 9, 31, END]),  # what follows an end does not count
        ([3, 5, 9, 31, 32, 33], 6, [3, 5, 9, 31, 32, 33]),
        ([3, 5, 4, 4, 4, 4], 2, [3, 5]),  # nor what there is no room for
    ],
)
def test_what_fits_is_let_through(canvas: list[int], room: int, settled: list[int]) -> None:
    assert guide().judge(np.array(canvas), room, nobody) == Verdict(settled, True)


def test_one_token_is_replaced_where_the_rest_fits_behind_it() -> None:
    asked = []

    def choose(position: int, allowed_V: np.ndarray) -> int:
        asked.append((position, np.flatnonzero(allowed_V).tolist()))
        return 8

    verdict = guide().judge(np.array([3, 7, 2, 31, END, 0]), 6, choose)
    assert verdict == Verdict([3, 7, 8, 31, END], True)
    assert asked == [(2, list(range(8, 50)))]


def test_else_the_canvas_is_denoised_again_behind_what_is_settled() -> None:
    assert guide().judge(np.array([3, 7, 2, 5, 40, END]), 6, smallest) == Verdict([3, 7, 8], False)


def test_what_must_follow_the_chosen_token_is_settled_with_it() -> None:
    assert guide().judge(np.array([3, 7, 2, 5, 40, 45]), 6, lambda *_: 49) == Verdict([3, 7, 49, END], True)


def test_the_next_canvas_goes_on_where_the_last_one_ended() -> None:
    followed = guide()
    assert followed.begin() == []
    assert followed.judge(np.array([3, 5, 9, 31, 32, 49]), 6, nobody).whole
    assert followed.begin() == [END]
    assert followed.judge(np.array([END, 0, 0, 0, 0, 0]), 6, nobody) == Verdict([END], True)


def test_a_canvas_that_never_fits_is_filled_in_after_so_many_tries() -> None:
    followed, hopeless = guide(), np.zeros(6, int)
    for _ in range(MOST_TRIES):
        assert not followed.judge(hopeless, 6, smallest).whole
    assert followed.judge(hopeless, 6, smallest) == Verdict([2, 3, 4, 5, 6, 7], True)
    assert not followed.judge(np.array([8, 0, 0, 0, 0, 0]), 6, smallest).whole is followed.begin() == []


def test_so_many_tokens_are_chosen_in_one_go_and_the_canvas_still_ends() -> None:
    """A canvas of which nothing fits, however often it is denoised around what is settled."""
    length, asked = 3 * MOST_FILLED, []
    followed = Guide(Rising(size=1000), length, (END,))  # type: ignore[arg-type]

    def choose(position: int, allowed_V: np.ndarray) -> int:
        asked.append(position)
        return int(np.flatnonzero(allowed_V)[1])  # never an end

    settled, sizes, whole = [], [], False
    while not whole:
        canvas = np.zeros(length, int)
        canvas[: len(settled)] = settled
        asked.clear()
        before = settled
        settled, whole = followed.judge(canvas, length, choose)
        assert settled[: len(before)] == before, "what is settled stays"
        sizes.append(len(asked))
    assert sizes == [1] * MOST_TRIES + [MOST_FILLED] * 2 + [MOST_FILLED - MOST_TRIES]
    assert len(settled) == length


def test_filling_a_canvas_lets_others_step_and_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgemma_jax.engine.guide.MOST_TRIES", 0)
    monkeypatch.setattr("dgemma_jax.engine.guide.MOST_FILLED", 1)
    core = Core(device := HandDevice(2))
    filled = core.submit(Request(tokens=(5,), max_new_tokens=4, grammar=Rising()))  # type: ignore[arg-type]
    endless = dataclasses.replace(GENERATION, eos_token_ids=())
    other = core.submit(Request(tokens=(6,), max_new_tokens=400, generation=endless))
    while device.log.count(f"choose {filled}") < 2:
        core.step()
    work = "".join(line[0] for line in device.log)
    assert "cc" not in work and "crd" in work, "after every choice the canvases are denoised"
    core.cancel(filled)
    core.step()
    assert list(device.rows) == [other]


def test_a_grammar_that_allows_nothing_more_says_so() -> None:
    class Dead(Rising):
        def copy(self) -> Dead:
            return self

        def begin(self) -> Dead:
            return self

        def allowed(self) -> np.ndarray:
            return np.zeros(50, bool)

    with pytest.raises(GrammarError, match="allows nothing"):
        Guide(Dead(), 6, (END,)).judge(np.zeros(6, int), 6, smallest)  # type: ignore[arg-type]


def drawn(rng: random.Random) -> Request:
    return Request(
        tokens=tuple(rng.randrange(2, 12) for _ in range(rng.choice([1, 3, 40]))),
        max_new_tokens=rng.randint(1, 30),
        seed=rng.randrange(3),
        grammar=Rising() if rng.random() < 0.5 else None,  # type: ignore[arg-type]
        draft_every=rng.choice([0, 0, 2]),
    )


def alone(request: Request) -> list[Event]:
    core = Core(HandDevice(1))
    id = core.submit(request)
    return text(run(core)[id])


@pytest.mark.parametrize("seed", range(60))
def test_answers_with_and_without_a_grammar_are_the_same_in_any_company(seed: int) -> None:
    rng = random.Random(seed)
    slots = rng.randint(1, 5)
    device = HandDevice(slots, together=rng.randint(1, slots))
    core = Core(device, steps=rng.randint(1, 4))
    wanted: dict[int, Request] = {}
    log: Log = {}
    for _ in range(60):
        if rng.random() < 0.25:
            request = drawn(rng)
            wanted[core.submit(request)] = request
        if wanted and rng.random() < 0.03:
            core.cancel(gone := rng.choice(list(wanted)))
            del wanted[gone]
        for id, event in core.step():
            log.setdefault(id, []).append(event)
    run(core, log)
    assert not device.rows
    for id, request in wanted.items():
        events = text(log[id])
        assert events == alone(request)
        tokens = [token for event in events if isinstance(event, CanvasCommitted) for token in event.tokens]
        assert request.grammar is None or is_rising(tokens, request.max_new_tokens)


def test_the_steps_of_all_tries_are_counted() -> None:
    core = Core(device := HandDevice(1))
    id = core.submit(Request(tokens=(5,), max_new_tokens=4, grammar=Rising()))  # type: ignore[arg-type]
    (canvas, _) = text(run(core)[id])
    tries = 1 + sum(line.startswith("restart") for line in device.log)
    steps = sum(int(line.split()[1]) for line in device.log if line.startswith("denoise"))
    assert isinstance(canvas, CanvasCommitted)
    assert canvas.steps == steps and tries > 1


@pytest.mark.parametrize("where", ["forced", "copy"])
def test_a_grammar_that_cannot_be_followed_fails_its_request_alone(where: str) -> None:
    """Before its first canvas, and after it."""

    class Broken(Rising):
        def begin(self) -> Broken:
            return self

    def broken(self: Broken) -> None:
        raise GrammarError("too large")

    setattr(Broken, where, broken)
    core = Core(HandDevice(2))
    bad = core.submit(Request(tokens=(5,), grammar=Broken()))  # type: ignore[arg-type]
    good = core.submit(other := Request(tokens=(6,), max_new_tokens=9))
    log = run(core)
    assert isinstance(log[bad][-1], Failed) and isinstance(log[bad][-1].error, GrammarError)
    assert text(log[good]) == alone(other)
