"""Whole answers: how long they are, where they end, and what they depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from golden import reading

from dgemma_jax import CanvasCommitted, Finished, GenerationConfig, Model, SamplingOptions, compiled, stream
from dgemma_jax.cache import Cache
from dgemma_jax.generate import cut

PROMPT = [5, 17, 60, 3]
SETTINGS = GenerationConfig(max_denoising_steps=3, entropy_bound=2.0, eos_token_ids=())


@pytest.fixture(scope="module")
def model() -> Model:
    return dataclasses.replace(reading.model("causal_images", backend="all_experts"), generation=SETTINGS)


@pytest.fixture(scope="module")
def answer(model: Model) -> list[int]:
    """Two canvases; there is no end token."""
    return model.generate([PROMPT], max_new_tokens=16, seed=5).tokens[0].tolist()


def with_end(model: Model, *tokens: int) -> Model:
    return dataclasses.replace(model, generation=dataclasses.replace(SETTINGS, eos_token_ids=tokens))


def test_the_same_row_and_seed_give_the_same_answer_in_any_batch(model: Model, answer: list[int]) -> None:
    other = [9, 9, 9, 9]
    batch = model.generate([other, PROMPT], max_new_tokens=16, seed=[1, 5])
    assert batch.tokens[1].tolist() == answer
    turned = model.generate([PROMPT, other], max_new_tokens=16, seed=[5, 1])
    np.testing.assert_array_equal(turned.tokens, batch.tokens[::-1])
    np.testing.assert_array_equal(turned.steps, batch.steps[::-1])


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(model: Model, answer: list[int]) -> None:
    assert model.generate([PROMPT], max_new_tokens=16, seed=5).tokens[0].tolist() == answer
    assert model.generate([PROMPT], max_new_tokens=16, seed=6).tokens[0].tolist() != answer


def test_one_seed_serves_all_rows(model: Model, answer: list[int]) -> None:
    batch = model.generate([PROMPT] * 2, max_new_tokens=16, seed=5)
    assert batch.tokens.tolist() == [answer] * 2


@pytest.mark.parametrize("most", [1, 7, 8, 9, 16])
def test_an_answer_is_cut_at_max_new_tokens_exactly(most: int, model: Model, answer: list[int]) -> None:
    result = model.generate([PROMPT], max_new_tokens=most, seed=5)
    assert result.tokens[0].tolist() == answer[:most]
    assert result.steps.tolist() == [[3] * (1 if most <= 8 else 2)]


def test_nothing_follows_the_first_end_token(model: Model, answer: list[int]) -> None:
    first, late = answer[2], answer[11]
    ended = with_end(model, first).generate([PROMPT], max_new_tokens=16, seed=5)
    assert ended.tokens[0].tolist() == answer[: answer.index(first) + 1]
    assert ended.steps.shape == (1, 1), "the second canvas is not written"
    either = with_end(model, late, first).generate([PROMPT], max_new_tokens=16, seed=5)
    assert either.tokens[0].tolist() == ended.tokens[0].tolist(), "any of the end tokens ends"


def test_the_device_has_the_next_canvas_before_the_present_one_is_told(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[compiled.Denoised] = []

    def denoise_canvas(*arguments: object) -> compiled.Denoised:
        given.append(real(*arguments))
        return given[-1]

    real = compiled.denoise_canvas
    monkeypatch.setattr(compiled, "denoise_canvas", denoise_canvas)
    events = stream(model, PROMPT, max_new_tokens=24, seed=5, generation=SETTINGS)
    for told, wanted in enumerate((2, 3, 3), start=1):
        assert isinstance(next(events), CanvasCommitted)
        assert len(given) == wanted, f"after canvas {told} of 3"


def test_the_device_does_nothing_ahead_where_all_rows_have_ended(
    model: Model, answer: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    lengths: list[int] = []

    def denoise_canvas(structure: object, numbers: object, cache: Cache, *rest: object) -> compiled.Denoised:
        lengths.append(int(cache.length_B[0]))
        canvas = real(structure, numbers, cache, *rest)
        steps.append(int(canvas.step_B[0]))
        return canvas

    real = compiled.denoise_canvas
    monkeypatch.setattr(compiled, "denoise_canvas", denoise_canvas)
    with_end(model, answer[2]).generate([PROMPT], max_new_tokens=16, seed=5)
    assert lengths == [len(PROMPT)] * 2, "the canvas is not read"
    assert steps == [3, 0], "and no step is taken behind it"


def test_a_row_that_has_ended_is_padded_while_others_go_on(model: Model, answer: list[int]) -> None:
    other = model.generate([PROMPT], max_new_tokens=16, seed=6).tokens[0].tolist()
    end = next(token for token in answer[:8] if token not in other)
    both = with_end(model, end).generate([PROMPT, PROMPT], max_new_tokens=16, seed=[5, 6])
    kept = answer.index(end) + 1
    assert both.tokens.tolist() == [answer[:kept] + [SETTINGS.pad_token_id] * (16 - kept), other]
    assert both.steps.tolist() == [[3, 0], [3, 3]], "no steps after a row's end"


def test_steps_are_limited_by_the_caller_or_by_the_checkpoint(model: Model) -> None:
    assert model.generate([PROMPT], max_new_tokens=8, seed=5).steps.tolist() == [[3]]
    assert model.generate([PROMPT], max_new_tokens=8, seed=5, max_denoising_steps=1).steps.tolist() == [[1]]


def test_stream_tells_the_same_answer_canvas_by_canvas(model: Model, answer: list[int]) -> None:
    events = list(stream(model, PROMPT, max_new_tokens=13, seed=5, generation=SETTINGS))
    assert events == [
        CanvasCommitted(tuple(answer[:8]), 3), CanvasCommitted(tuple(answer[8:13]), 3), Finished("length")
    ]  # fmt: skip
    ending = with_end(model, answer[11]).generation
    *canvases, last = stream(model, PROMPT, max_new_tokens=16, seed=5, generation=ending)
    assert last == Finished("stop")
    assert sum((canvas.tokens for canvas in canvases), ())[-1] == answer[11]


def test_every_kept_token_has_a_logprob_and_as_many_likeliest_as_were_asked_for(
    model: Model, answer: list[int]
) -> None:
    options = SamplingOptions(logprobs=3)
    *canvases, _ = stream(model, PROMPT, max_new_tokens=13, seed=5, generation=SETTINGS, options=options)
    assert [token for canvas in canvases for token in canvas.tokens] == answer[:13]
    told = [entry for canvas in canvases for entry in canvas.logprobs]
    assert [entry.likeliest[0] for entry in told] == [(a, e.logprob) for a, e in zip(answer, told, strict=False)]
    for entry in told:
        values = [value for _, value in entry.likeliest]
        assert len(values) == 3 and values == sorted(values, reverse=True) and values[0] < 0
    bare = next(
        stream(model, PROMPT, max_new_tokens=8, seed=5, generation=SETTINGS, options=SamplingOptions(logprobs=0))
    )
    assert bare.logprobs == tuple(dataclasses.replace(entry, likeliest=()) for entry in told[:8])


def test_generate_tells_the_logprobs_of_the_tokens_before_the_padding(model: Model, answer: list[int]) -> None:
    options = SamplingOptions(logprobs=2)
    ending = with_end(model, answer[2])
    batch = ending.generate([PROMPT, PROMPT], max_new_tokens=16, seed=[5, 6], options=options)
    for seed, row in zip((5, 6), batch.logprobs, strict=True):
        arguments = {"max_new_tokens": 16, "seed": seed, "generation": ending.generation, "options": options}
        *canvases, _ = stream(ending, PROMPT, **arguments)
        assert row == sum((canvas.logprobs for canvas in canvases), ())
    assert len(batch.logprobs[0]) == answer.index(answer[2]) + 1


def test_bounds_on_the_draw_change_an_answer_and_every_value_of_them_is_one_program(
    model: Model, answer: list[int]
) -> None:
    def ask(options: SamplingOptions) -> list[int]:
        return model.generate([PROMPT], max_new_tokens=8, seed=5, options=options).tokens[0].tolist()

    assert ask(SamplingOptions(top_k=1)) != answer[:8]
    programs = compiled.denoise_canvas._cache_size()
    assert ask(SamplingOptions(top_p=0.0)) == ask(SamplingOptions(top_k=1)), "both: only the likeliest is drawn"
    assert ask(SamplingOptions(top_k=10**12, top_p=1.0)) == answer[:8]
    assert compiled.denoise_canvas._cache_size() == programs
    assert ask(SamplingOptions()) == answer[:8]


def test_an_answer_stops_where_the_positions_end(model: Model) -> None:
    """241 of 256 positions are taken: one canvas of 8 fits, not two; 249 leave no room."""
    long = np.resize(PROMPT, 241)
    events = list(stream(model, long.tolist(), max_new_tokens=16, seed=0, generation=SETTINGS))
    assert [type(event) for event in events] == [CanvasCommitted, Finished] and events[-1] == Finished("length")
    with pytest.raises(ValueError, match="a prompt of 249 tokens leaves no room for a canvas of 8 in the model's 256"):
        model.generate([np.resize(PROMPT, 249)])


@pytest.mark.parametrize("argument", ["max_new_tokens", "max_denoising_steps"])
def test_numbers_that_are_not_positive_are_refused(argument: str, model: Model) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be positive, found 0"):
        model.generate([PROMPT], **{argument: 0})


def test_prompts_of_the_wrong_shape_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match=r"found int64 \(4,\)"):
        model.generate(np.asarray(PROMPT))
    with pytest.raises(ValueError, match=r"found int64 \(0, 4\)"):
        model.generate(np.zeros((0, 4), np.int64))


def test_cut_keeps_up_to_and_with_the_first_end_token_that_fits() -> None:
    canvas = np.array([4, 5, 1, 6, 1])
    assert cut(canvas, 5, (1,)) == [4, 5, 1]
    assert cut(canvas, 2, (1,)) == [4, 5]
    assert cut(canvas, 9, (7,)) == [4, 5, 1, 6, 1]


def test_images_are_part_of_the_prompt(model: Model) -> None:
    golden = reading.case("causal_images", "logits", "image_each")
    images = reading.images(golden)
    result = model.generate(golden["tokens"], max_new_tokens=8, seed=1, **images)
    black = images | {"patches": np.zeros_like(images["patches"])}
    assert (model.generate(golden["tokens"], max_new_tokens=8, seed=1, **black).tokens != result.tokens).any()
