"""The engine over tiny models: every answer is the one `stream` gives, token for token, whatever else is going on."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine.hand_grammar import Rising
from golden import reading
from jax.errors import JaxRuntimeError
from tolerances import REORDERED

from dgemma_jax import CanvasCommitted, Engine, Finished, GenerationConfig, Model, Request, SamplingOptions, stream
from dgemma_jax.cache import Cache
from dgemma_jax.engine import Answer, Draft, EngineDeadError, Failed, Prefilled, programs
from dgemma_jax.engine.prefix import Reuse

SETTINGS = GenerationConfig(max_denoising_steps=5, entropy_bound=2.0, eos_token_ids=(3, 4, 5))
CHUNK = 16


@pytest.fixture(scope="module", autouse=True)
def small_sizes() -> Iterator[None]:
    """Prompts of many passes and caches of several capacities, within the 256 positions of a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dgemma_jax.pretrained.prefill_chunk", lambda canvas_length, platform: CHUNK)
        patch.setattr("dgemma_jax.buckets.SMALLEST_CAPACITY", 64)
        patch.setattr("dgemma_jax.buckets.PREFILL_BUCKETS", (CHUNK,))
        yield


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Model:
    return dataclasses.replace(reading.model("window6", request.param, "all_experts"), generation=SETTINGS)


def requests(count: int, seed: int) -> list[Request]:
    """Of all lengths, with settings of their own; some begin alike."""
    rng = random.Random(seed)
    shared = [rng.randrange(6, 70) for _ in range(40)]
    made = []
    for index in range(count):
        own = [rng.randrange(6, 70) for _ in range(rng.randint(1, 30))]
        made.append(
            Request(
                tokens=tuple((shared if index % 3 == 0 else []) + own),
                max_new_tokens=rng.randint(1, 40),
                seed=rng.randrange(2**64),
                generation=dataclasses.replace(
                    SETTINGS, max_denoising_steps=rng.randint(1, 6), t_max=rng.uniform(0.5, 2.0)
                ),
                draft_every=rng.choice([0, 0, 2]),
            )
        )
    return made


def alone(model: Model, one: Request) -> Answer:
    """The plain path's answer."""
    answer = Answer()
    images = {"patches": one.patches, "patch_positions": one.patch_positions}
    generation = one.generation or model.generation
    for event in stream(
        model, one.tokens, max_new_tokens=one.max_new_tokens, seed=one.seed, generation=generation, **images
    ):
        answer = answer.after(event)
    return answer


def plain(answers: list[Answer]) -> list[Answer]:
    """Answers without what the plain path does not know."""
    return [dataclasses.replace(answer, cached_tokens=0) for answer in answers]


def test_prompts_read_together_are_answered_as_alone_also_where_the_store_has_one(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorts = [Request(tokens=tuple(range(6, 6 + n)), max_new_tokens=12, seed=n) for n in (5, 9, 12)]
    engine, passes = Engine(model, slots=4), []
    read = engine._device.read_together
    monkeypatch.setattr(engine._device, "read_together", lambda plans: passes.append(len(plans)) or read(plans))
    for wave in (shorts[:1], shorts):
        answers = {engine.submit(one): Answer() for one in wave}
        for id, event in engine.run():
            answers[id] = answers[id].after(event)
    engine.close()
    assert passes == [3]
    assert [answer.cached_tokens for answer in answers.values()] == [5, 0, 0]
    assert plain(list(answers.values())) == [alone(model, one) for one in shorts]


@pytest.mark.parametrize("reuse", ["exact", "any"])
def test_what_was_read_together_serves_a_prompt_that_comes_alone_only_where_rounding_does_not_matter(
    model: Model, reuse: Reuse
) -> None:
    shorts = [
        Request(tokens=tuple(range(6, 6 + n)), max_new_tokens=12, seed=n, options=SamplingOptions(logprobs=1))
        for n in (5, 9, 12)
    ]
    engine, fresh = Engine(model, slots=4, reuse=reuse), Engine(model, slots=1, reuse="off")
    for one in shorts:
        engine.submit(one)
    assert sum(isinstance(event, Finished) for _, event in engine.run()) == len(shorts)
    answers = [engine.generate_many([one], progress=False)[0] for one in shorts]
    if reuse == "exact":
        assert answers == [fresh.generate_many([one], progress=False)[0] for one in shorts], "to the last bit"
        answers = [engine.generate_many([one], progress=False)[0] for one in shorts]
    assert [answer.cached_tokens for answer in answers] == [5, 9, 12]
    engine.close()
    fresh.close()


def test_a_row_that_a_request_left_is_taken_by_the_next_while_the_others_stay_where_they_are(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone in the middle of a batch of four; no cache is copied, and nothing of the one before is left."""
    moved: list[bool] = []
    arrange = programs.arrange
    monkeypatch.setattr(programs, "arrange", lambda *a, **named: moved.append(named["consume"]) or arrange(*a, **named))
    endless = dataclasses.replace(SETTINGS, eos_token_ids=())
    wanted = [
        Request(tokens=tuple(range(6, 12 + n)), max_new_tokens=tokens, seed=n, generation=endless)
        for n, tokens in enumerate((40, 8, 40, 40, 16))
    ]
    engine, answers, later = Engine(model, slots=4, steps=1), {}, []
    for one in wanted[:4]:
        answers[engine.submit(one)] = Answer()
    while engine.busy:
        for id, event in engine.step():
            answers[id] = answers[id].after(event)
            if isinstance(event, Finished) and not later:
                del moved[:]
                later.append(engine.submit(wanted[4]))
                answers[later[0]] = Answer()
            elif later == [id] and isinstance(event, Prefilled):
                assert not any(moved)
    engine.close()
    assert plain(list(answers.values())) == [alone(model, one) for one in wanted]


def test_the_engine_answers_as_the_plain_path_does(model: Model) -> None:
    wanted = requests(12, seed=1)
    expected = [alone(model, one) for one in wanted]
    engine = Engine(model, slots=2)
    assert plain(engine.generate_many(wanted, progress=False)) == expected
    backwards = engine.generate_many(wanted[::-1], progress=False)
    assert plain(backwards) == expected[::-1]
    known = [answer for one, answer in zip(wanted[::-1], backwards, strict=True) if len(one.tokens) > CHUNK]
    assert known and all(answer.cached_tokens for answer in known), "what was read alone is known the second time"
    engine.close()


HEAT = GenerationConfig(max_denoising_steps=6, entropy_bound=90.0, t_min=5.0, t_max=9.0, eos_token_ids=())


def test_nobody_can_tell_who_else_is_there(model: Model) -> None:
    """Beside neighbours of every kind, in every slot, known or not: the same answer."""
    asked = Request(tokens=(9, 8, 7, 6), max_new_tokens=20, seed=5)
    wanted = alone(model, asked)
    broken = Request(tokens=(7, 8), max_new_tokens=20, generation=dataclasses.replace(HEAT, t_min=0.0, t_max=1e-44))
    held = Rising(model.config.text.vocab_size, SETTINGS.eos_token_ids[0])
    neighbours = [
        Request(tokens=(11,) * 150, max_new_tokens=40, generation=HEAT),
        Request(tokens=(7, 8, 9), max_new_tokens=20, grammar=held),  # type: ignore[arg-type]
        pictured(name="window6"),
        broken,
        dataclasses.replace(asked, seed=6, options=SamplingOptions(top_k=3, top_p=0.5)),
        Request(tokens=tuple(range(6, 60)), max_new_tokens=9, draft_every=1),  # leaves
        asked,
    ]
    engine = Engine(model, slots=2, apart=True)
    for place in (0, 2, 4):
        answers: dict[int, Answer] = {}
        line = [*neighbours[:place], asked, *neighbours[place:]]
        ids = [engine.submit(one) for one in line]
        for id, event in engine.run():
            answers[id] = answers.get(id, Answer()).after(event)
            if isinstance(event, Prefilled) and id == ids[-2]:
                engine.cancel(id)
        same = [answers[id] for id, one in zip(ids, line, strict=True) if one == asked]
        assert plain(same) == [wanted, wanted]
        assert isinstance(answers[ids[line.index(broken)]].error, ArithmeticError)
    engine.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    model = dataclasses.replace(reading.model("window6", backend="all_experts"), generation=SETTINGS)
    made = Engine(model, slots=2, prefix_bytes=200_000)
    yield made
    made.close()


def test_rows_apart_answer_as_the_plain_path_does(engine: Engine) -> None:
    model = engine._device.model  # type: ignore[attr-defined]
    wanted = requests(5, seed=2)
    engine = Engine(model, slots=2, apart=True, reuse="off", steps=3)
    answers = engine.generate_many(wanted, progress=False)
    assert answers == [alone(model, one) for one in wanted]
    engine.close()


def test_a_prompt_that_begins_as_an_earlier_one_reuses_its_whole_passes(engine: Engine) -> None:
    start = tuple(range(6, 6 + 40))
    ask = [Request(tokens=(*start, n), max_new_tokens=8) for n in (50, 51)]
    first, second = (engine.generate_many([one], progress=False)[0] for one in ask)
    assert (first.cached_tokens, second.cached_tokens) == (0, 2 * CHUNK)
    assert engine.generate_many(ask[:1], progress=False)[0].cached_tokens == 41


def test_any_reuse_takes_earlier_answers_along(engine: Engine) -> None:
    loose = Engine(engine._device.model, slots=2, reuse="any")  # type: ignore[attr-defined]
    start, image = (10, 11, 12), loose._device.model.config.image_token_id  # type: ignore[attr-defined]
    no_end = dataclasses.replace(SETTINGS, eos_token_ids=())
    (first,) = loose.generate_many([start], progress=False, max_new_tokens=24, seed=1, generation=no_end)
    assert image not in first.tokens, "choose another seed: the next prompt must be one without images"
    (second,) = loose.generate_many([(*start, *first.tokens, 9)], progress=False, max_new_tokens=8)
    assert second.cached_tokens == 3 + 16, "two of the three canvases were committed"
    loose.close()


def test_memory_is_flat(engine: Engine) -> None:
    def bytes_alive() -> int:
        return sum(x.nbytes for x in jax.live_arrays())

    wanted = [dataclasses.replace(one, max_new_tokens=9) for one in requests(40, seed=3)]
    engine.generate_many(wanted, progress=False)
    before = bytes_alive()
    for _ in range(5):
        engine.generate_many(wanted, progress=False)
    assert abs(bytes_alive() - before) <= 40_000, "a prompt more or less in the prefix store"


@pytest.mark.parametrize("is_lost", [False, True])
def test_no_memory_for_a_larger_batch_fails_one_request_unless_rows_were_lost(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    arrange, left = programs.arrange, [JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")]

    def without_room(cache: Cache, *rest: Any, consume: bool = False, **named: Any) -> Cache:
        if not consume or not left:
            return arrange(cache, *rest, consume=consume, **named)
        if is_lost:
            cache.layers[0].key_BKSC.delete()
        raise left.pop()

    model = engine._device.model  # type: ignore[attr-defined]
    made = Engine(model, slots=2)
    running, joining = (Request(tokens=(token,) * 20, max_new_tokens=40) for token in (7, 8))
    answers = {made.submit(running): Answer()}
    made.step()
    monkeypatch.setattr(programs, "arrange", without_room)
    answers[made.submit(joining)] = Answer()
    for id, event in made.run():
        answers[id] = answers[id].after(event)
    first, second = answers.values()
    assert not left
    if is_lost:
        assert isinstance(made.error, JaxRuntimeError)
        assert isinstance(first.error, EngineDeadError) and isinstance(second.error, EngineDeadError)
    else:
        assert made.error is None and first == alone(model, running) and isinstance(second.error, JaxRuntimeError)
    made.close()


def test_options_are_each_requests_own(engine: Engine) -> None:
    model = engine._device.model  # type: ignore[attr-defined]
    asked = [SamplingOptions(), SamplingOptions(top_k=3, logprobs=2), SamplingOptions(logprobs=0)]
    wanted = [Request(tokens=(9, 8, 7), max_new_tokens=12, seed=n, options=o) for n, o in enumerate(asked)]
    for one, answer in zip(wanted, engine.generate_many(wanted, progress=False), strict=True):
        expected = [
            event
            for event in stream(
                model, one.tokens, max_new_tokens=12, seed=one.seed, generation=SETTINGS, options=one.options
            )
            if isinstance(event, CanvasCommitted)
        ]
        assert answer.tokens == sum((event.tokens for event in expected), ())
        scores = [score for event in expected for score in event.logprobs or ()]
        assert len(answer.logprobs) == len(scores)
        for score, other in zip(answer.logprobs, scores, strict=True):
            assert score.logprob == pytest.approx(other.logprob, abs=REORDERED)  # two rows together, and one alone
            assert [token for token, _ in score.likeliest] == [token for token, _ in other.likeliest]


def test_drafts_show_the_canvas_on_its_way(engine: Engine) -> None:
    no_end = dataclasses.replace(SETTINGS, eos_token_ids=(), confidence_threshold=1e-9)
    id = engine.listen(Request(tokens=(7,), max_new_tokens=8, generation=no_end, draft_every=2), (seen := []).append)
    engine.generate_many([(8,)], progress=False, max_new_tokens=40, generation=no_end)
    assert id >= 0 and isinstance(seen[0], Prefilled)
    drafts = [event for event in seen if isinstance(event, Draft)]
    assert [draft.step for draft in drafts] == [2, 4] and all(len(draft.tokens) == 8 for draft in drafts)


@pytest.fixture(scope="module")
def seeing() -> Model:
    return dataclasses.replace(reading.model("causal_images", backend="all_experts"), generation=SETTINGS)


def pictured(shade: float = 1.0, name: str = "causal_images") -> Request:
    golden = reading.case(name, "logits", "image_each")
    images = reading.images(golden)
    (tokens,) = golden["tokens"][:1].tolist()
    count = len(images["patches"]) // len(golden["tokens"])
    return Request(
        tokens=tuple(tokens),
        max_new_tokens=8,
        patches=np.asarray(images["patches"][:count]) * np.float32(shade),
        patch_positions=images["patch_positions"][:count],
    )


def test_images_are_answered_and_reused_as_the_plain_path_answers_them(seeing: Model) -> None:
    engine = Engine(seeing, slots=2)
    bright, dark, text = pictured(), pictured(0.5), Request(tokens=(5, 6, 7), max_new_tokens=8)
    wanted = [bright, text, dark, bright]
    answers = [engine.generate_many([one], progress=False)[0] for one in wanted]
    assert plain(answers) == [alone(seeing, one) for one in wanted]
    assert [answer.cached_tokens for answer in answers] == [0, 0, 0, len(bright.tokens)]
    engine.close()


def test_a_prompt_that_breaks_the_numbers_fails_alone(seeing: Model) -> None:
    def poison(path: tuple[object, ...], x: jax.Array) -> jax.Array:
        return x * jnp.nan if "projection_DW" in jax.tree_util.keystr(path) else x

    broken = dataclasses.replace(seeing, params=jax.tree_util.tree_map_with_path(poison, seeing.params))
    engine = Engine(broken, slots=2)
    text = Request(tokens=(5, 6, 7), max_new_tokens=30)
    failed, answer, after = engine.generate_many([pictured(), text, text], progress=False)
    assert isinstance(failed.error, ArithmeticError)
    assert answer.tokens == after.tokens == alone(seeing, text).tokens
    assert engine.error is None and Failed(failed.error).error is failed.error
    engine.close()
