"""Compiling ahead: after it, no request waits for a compilation."""

from __future__ import annotations

import dataclasses
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import reading

from dgemma_jax import Engine, Finished, GenerationConfig, Model, Request, SamplingOptions
from dgemma_jax.buckets import image_groups
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, ProcessorConfig
from dgemma_jax.engine.device import ModelDevice
from dgemma_jax.engine.warm import Part, compile_behind, parts_of
from dgemma_jax.sampling.options import PLAIN


@pytest.fixture
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgemma_jax.buckets.SMALLEST_CAPACITY", 64)
    monkeypatch.setattr("dgemma_jax.buckets.PREFILL_BUCKETS", (16,))
    monkeypatch.setattr("dgemma_jax.pretrained.prefill_chunk", lambda canvas_length, platform: 16)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Model:
    settings = GenerationConfig(max_denoising_steps=3, entropy_bound=2.0, eos_token_ids=())
    return dataclasses.replace(reading.model(request.param, backend="all_experts"), generation=settings)


def warmed_up(engine: Engine, parts: int) -> list[str]:
    """Waits for all that is compiled ahead; what was there at once."""
    lines: list[str] = []
    engine.warm_up(lines.append)
    at_once, until = list(lines), time.monotonic() + 600
    while len(lines) < parts and time.monotonic() < until:
        time.sleep(0.01)
    engine._end_warm_up()
    assert len(lines) == parts, "\n".join(lines)
    assert all(line.endswith(" s") for line in lines)
    return at_once


def compiled_by(engine: Engine, requests: list[Request], caplog: pytest.LogCaptureFixture) -> str:
    """What is compiled while all are answered together."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for request in requests:
            engine.submit(request)
        events = [event for _, event in engine.run()]
    assert sum(isinstance(event, Finished) for event in events) == len(requests)
    return "\n".join(r.getMessage()[:230] for r in caplog.records if r.getMessage().startswith("Compiling"))


@pytest.mark.parametrize("model", ["text_only"], indirect=True)
def test_no_request_waits_for_a_compilation_after_the_warm_up(
    small_shapes: None, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(model, slots=2, max_context=100)
    at_once = warmed_up(engine, 2 * (1 + 2 + 1 + 2) + 1)  # a canvas and a chunk have one length here
    assert len(at_once) >= 1 + 2 + 1, "what short prompts need is there at once"
    prompts = [tuple(range(6, 6 + length)) for length in (3, 7, 30, 70, 5)]
    for options in (PLAIN, SamplingOptions(top_k=3), PLAIN):
        requests = [Request(tokens=tokens, max_new_tokens=24, options=options) for tokens in prompts]
        assert not (found := compiled_by(engine, requests, caplog)), found


@pytest.mark.parametrize("model", ["text_only"], indirect=True)
@pytest.mark.parametrize(("everything", "parts"), [(True, 13), (False, 9)])
def test_where_nothing_is_compiled_beside_requests_all_is_there_at_once(
    everything: bool, parts: int, small_shapes: None, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: truncated canvases, too, unless they are left out."""
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr("dgemma_jax.engine.warm._timed", lambda part: part.line)
    lines: list[str] = []
    Engine(model, slots=2, max_context=100).warm_up(lines.append, everything=everything)
    assert len(lines) == parts, lines
    assert any("truncated" in line for line in lines) == everything


def published() -> Engine:
    """Over the published model without its weights, of which no part is compiled here."""
    model = Model(
        config=DIFFUSION_GEMMA_26B_A4B,
        generation=GenerationConfig(),
        processor=ProcessorConfig(),
        tokenizer=None,
        dtype=jnp.dtype("bfloat16"),
        graphdef=None,  # type: ignore[arg-type]
        params=None,  # type: ignore[arg-type]
    )
    return Engine(model, slots=1, max_context=8192, kv_bytes=2**36)


CANVASES = [
    f"canvases of 1 rows, {size} positions{option}" for option in ("", ", truncated") for size in (512, 2048, 8192)
]
PASSES = {512: (128, 256, 512), 2048: (128, 256, 512, 1024), 8192: (128, 256, 512, 1024)}


@pytest.mark.parametrize(
    ("backend", "images", "longest"),
    [
        # Sixteen frames, four images, one with `detail: "high"`: what requests hold.
        ("gpu", {630: (1, 2, 4, 8, 16), 1260: (1,), 2520: (1, 2, 4), 5040: (1,), 10080: (1,)}, 1024),
        ("cpu", {630: (1, 2, 4), 1260: (1,), 2520: (1,)}, 256),
    ],
)
def test_the_published_model_has_these_programs(
    backend: str, images: dict[int, tuple[int, ...]], longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of 1120 soft tokens is read in one pass, which no chunk of text is as long as."""
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    wanted = list(CANVASES)
    for capacity, sizes in PASSES.items():
        for size in [*sizes, 2048] if capacity >= 2048 else sizes:
            line = f"prompt pass of {size} tokens, {capacity} positions"
            wanted += [line] * (size <= longest) + [f"{line}, with images"]
        wanted.append(f"copies of {capacity} positions")
    wanted += [f"{count} images of {patches} patches" for patches, counts in images.items() for count in counts]
    device = published()._device
    assert isinstance(device, ModelDevice)
    assert [part.line for part in parts_of(device, everything=True)] == wanted


def test_every_group_of_frames_and_of_a_few_images_has_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    device = published()._device
    assert isinstance(device, ModelDevice)
    lines = {part.line for part in parts_of(device, everything=True)}
    for soft_tokens, most in ((64, 16 * 32), (252, 16), (1089, 16)):
        for count in range(1, most + 1):
            for group in image_groups([9 * soft_tokens] * count, 9):
                assert f"{group.images} images of {group.patches} patches" in lines


@pytest.mark.parametrize("model", ["causal_images"], indirect=True)
def test_nor_does_one_with_images(
    monkeypatch: pytest.MonkeyPatch, small_shapes: None, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dgemma_jax.engine.warm._MOST_IMAGES", 1)
    processor = ProcessorConfig(max_soft_tokens=16, video_max_soft_tokens=16, video_num_frames=1)
    engine = Engine(dataclasses.replace(model, processor=processor), slots=1, max_context=64)
    warmed_up(engine, 1 + 1 + 2 + 2 + 1 + 1)  # passes have two lengths here
    golden = reading.case("causal_images", "logits", "image_each")
    images = {name: np.asarray(array)[:1] for name, array in reading.images(golden).items()}
    tokens = tuple(np.asarray(golden["tokens"])[0].tolist())
    requests = [Request(tokens=(5,) * before + tokens, max_new_tokens=8, **images) for before in (0, 3, 9)]
    assert not (found := compiled_by(engine, requests, caplog)), found


def test_what_goes_on_after_the_warm_up_ends_with_the_engine() -> None:
    engine = Engine(reading.model("text_only", backend="all_experts"), slots=1)
    lines: list[str] = []
    work = [Part(str(number), lambda: time.sleep(0.01), capacity=1) for number in range(1000)]
    engine._end_warm_up = compile_behind(work, lines.append)
    engine.close()
    done = len(lines)
    time.sleep(0.05)
    assert len(lines) == done < 1000
