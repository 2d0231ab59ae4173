"""A checkpoint that sees, behind the real server: files in, prompts with soft tokens out."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import jax
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image
from tiny_checkpoint import FRAME_TOKENS, FRAMES, SOFT_TOKENS, run, tokens_of, write_checkpoint

from dgemma_jax.media.patches import Patches
from dgemma_jax.prompt.tokenizer import Tokenizer
from serve.app import create_app
from serve.checkpoint_engine import CheckpointEngine
from serve.config import ServeConfig
from serve.engine import Finished, Job, MediumError, PromptError

URL = "/v1/chat/completions"
DETAILS = ("low", "auto", "high")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    write_checkpoint(folder, positions=200, sees=True)
    return folder


@pytest.fixture(scope="module")
def engine(folder) -> Iterator[CheckpointEngine]:
    with contextlib.closing(CheckpointEngine.load(folder, "float32", slots=2)) as engine:
        yield engine


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.from_folder(folder)


def picture(width: int = 20, height: int = 20, shade: int = 90, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 2 * shade, 10)).save(file, form)
    return file.getvalue()


def film() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        with av.open(path, "w") as file:
            stream: Any = file.add_stream("libx264", rate=2)
            stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
            for shade in range(6):
                file.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 16), (40 * shade,) * 3))))
            file.mux(stream.encode(None))
        return path.read_bytes()


def part(data: bytes, kind: str = "image", mime: str = "image/png") -> dict[str, Any]:
    url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def render(engine: CheckpointEngine, *kinds: str) -> tuple[int, ...]:
    content = [{"type": "text", "text": "See "}, *({"type": kind} for kind in kinds)]
    return engine.render([{"role": "user", "content": content}], thinking=False)


def test_media_take_no_more_memory_than_foretold(engine) -> None:
    for detail in DETAILS:
        patches = engine.read(picture(), "image", detail).patches
        assert 0 < patches.patches_NP.nbytes <= engine.medium_bytes("image", detail)
    frames = engine.read(film(), "video", "auto").frames
    assert 0 < sum(patches.patches_NP.nbytes for _, patches in frames) <= engine.medium_bytes("video", "auto")


def test_an_image_becomes_its_soft_tokens_and_a_video_those_of_its_frames(engine, tokenizer):
    assert engine.media == {"image", "video"}
    media = [engine.read(picture(), "image", "auto"), engine.read(film(), "video", "auto")]
    prompt = engine.expand(render(engine, "image", "video"), media)
    assert prompt.tokens.count(tokenizer.token_id("<|image|>")) == SOFT_TOKENS + FRAMES * FRAME_TOKENS
    assert prompt.tokens.count(tokenizer.token_id("<|image>")) == 1 + FRAMES
    assert len(prompt.images) == 1 + FRAMES
    assert "00:01" in tokenizer.decode(prompt.tokens)


def test_what_is_seen_reaches_the_model(engine):
    keys = []
    for shade in (10, 120):
        prompt = engine.expand(render(engine, "image"), [engine.read(picture(shade=shade), "image", "auto")])
        (events,) = run(engine, Job(prompt=prompt.tokens, max_new_tokens=8, seed=3, images=prompt.images))
        wanted = engine._model.generate([prompt.tokens], max_new_tokens=8, seed=3, patches=prompt.images).tokens[0]
        assert tokens_of(events) == wanted.tolist()
        keys.append(jax.tree.leaves(engine._model.prefill([prompt.tokens], patches=prompt.images)))
    assert any((np.asarray(one) != np.asarray(other)).any() for one, other in zip(*keys, strict=True))


def test_detail_chooses_how_finely_an_image_is_seen(engine, tokenizer):
    """With the budgets of the published checkpoint."""
    processor = dataclasses.replace(engine._model.processor, max_soft_tokens=280)
    published = CheckpointEngine(
        dataclasses.replace(engine._model, processor=processor), tokenizer, engine._template, engine._engine
    )
    seen = [published.read(picture(1000, 1000), "image", detail).patches.soft_tokens for detail in DETAILS]
    assert seen == [8**2, 16**2, 33**2], "squares of at most 70, 280 and 1120 soft tokens"


def test_pictures_of_every_shape_make_no_more_than_their_budget(engine):
    for size in ((1, 1), (1, 500), (500, 1), (7, 300), (64, 48)):
        prompt = engine.expand(render(engine, "image"), [engine.read(picture(*size), "image", "low")])
        assert 1 <= prompt.images[0].soft_tokens <= SOFT_TOKENS
        (events,) = run(engine, Job(prompt=prompt.tokens, max_new_tokens=8, seed=0, images=prompt.images))
        assert isinstance(events[-1], Finished)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("image", b""),
        ("image", b"GIF89a"),
        ("image", picture()[:60]),
        ("video", picture()),
        ("image", film()),
        ("video", film()[:400]),
    ],
)
def test_files_that_are_no_media_are_refused(engine, kind, data):
    with pytest.raises(MediumError):
        engine.read(data, kind, "auto")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(engine):
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    with pytest.raises(MediumError, match="too large"):
        engine.read(file.getvalue(), "image", "auto")


def test_a_template_that_leaves_media_out_is_a_prompt_error(engine, monkeypatch):
    monkeypatch.setattr(engine._template, "encode", lambda *_, **__: [2, 3])
    with pytest.raises(PromptError, match="leave one out"):
        render(engine, "image")


async def test_more_images_than_a_prompt_may_hold_are_a_400_with_the_numbers(engine, monkeypatch):
    monkeypatch.setattr("dgemma_jax.media.prompt.MOST_PROMPT_PATCHES", 150)
    app = create_app(engine, ServeConfig(served_model_name=("demo",), shutdown_seconds=0.2))
    statuses, body = [], {"model": "demo", "max_tokens": 8}
    async with TestClient(TestServer(app)) as client:
        for count in (2, 3):  # of 64 patches each, most of them padding
            messages = [{"role": "user", "content": [part(picture())] * count}]
            response = await client.post(URL, json=body | {"messages": messages})
            statuses.append(response.status)
        error = (await response.json())["error"]
    assert statuses == [200, 400] and error["param"] == "messages"
    assert "wanted at most 150 patches, found 192 in 3 images" in error["message"]


async def test_the_choices_of_a_request_share_what_is_known_of_its_images(engine, monkeypatch):
    """Found out where the file is decoded; the engine's thread does not look at the pixels."""
    digests, made = [], Patches.__dict__["digest"].func
    monkeypatch.setattr(Patches.__dict__["digest"], "func", lambda image: digests.append(1) or made(image))
    app = create_app(engine, ServeConfig(served_model_name=("demo",), shutdown_seconds=0.2))
    content = [part(picture(shade=33)), part(film(), "video", "video/mp4")]
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 8, "n": 3}
    async with TestClient(TestServer(app)) as client:
        assert (await client.post(URL, json=body)).status == 200
    assert len(digests) == 1 + FRAMES


async def test_the_server_answers_about_pictures_and_videos_whole_and_streamed(engine):
    app = create_app(engine, ServeConfig(served_model_name=("demo",), shutdown_seconds=0.2))
    parts = [
        part(picture(form="JPEG"), mime="image/jpeg"),
        {"type": "text", "text": "?"},
        part(film(), "video", "video/mp4"),
    ]
    body = {"model": "demo", "messages": [{"role": "user", "content": parts}], "max_tokens": 8, "seed": 1}
    async with TestClient(TestServer(app)) as client:
        whole = await client.post(URL, json=body)
        assert whole.status == 200, await whole.text()
        usage = (await whole.json())["usage"]
        assert usage["prompt_tokens"] > SOFT_TOKENS + FRAMES * FRAME_TOKENS
        streamed = await client.post(URL, json=body | {"stream": True})
        assert (await streamed.text()).endswith("data: [DONE]\n\n")
        broken = await client.post(URL, json=body | {"messages": [{"role": "user", "content": [part(b"GIF89a")]}]})
        error = (await broken.json())["error"]
        assert (broken.status, error["param"]) == (400, "messages[0].content[0].image_url")
