"""The engine over a real checkpoint: a tiny random one, written here, with the demo's tokenizer and chat template."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx

import dgemma_jax
from dgemma_jax.checkpoint.export import export
from dgemma_jax.config import FULL, SLIDING, GenerationConfig, ModelConfig, TextConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.prompt.template import TemplateError
from dgemma_jax.prompt.tokenizer import Tokenizer
from serve.checkpoint_engine import CheckpointEngine, tempered
from serve.config import DEMO_CHECKPOINT
from serve.engine import Canvas, Finished, Job, PromptError

CANVAS = 8
HI = [{"role": "user", "content": "Hi"}]


def write_checkpoint(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO_CHECKPOINT / name, folder / name)
    tokenizer = Tokenizer.from_folder(folder)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_experts=2,
        top_k_experts=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_global_key_value_heads=1,
        head_dim=8,
        global_head_dim=8,
        layer_types=(SLIDING, FULL),
        sliding_window=16,
        max_position_embeddings=100,
    )
    config = ModelConfig(text=text, vision=None, canvas_length=CANVAS)
    generation = GenerationConfig(max_denoising_steps=2, eos_token_ids=(tokenizer.token_id("<eos>"),))
    _, params = nnx.split(DiffusionGemma(config, nnx.Rngs(0), jnp.dtype("float32")))
    export(folder, config, generation, params, jnp.dtype("float32"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder) -> CheckpointEngine:
    engine = CheckpointEngine.load(folder, "float32")
    engine.warm_up()
    return engine


def test_a_job_gives_what_the_library_gives(engine, folder):
    model = dgemma_jax.load(folder, dtype="float32")
    job = Job(prompt=engine.render(HI, thinking=False), max_new_tokens=CANVAS + 3, seed=-7)
    *canvases, last = engine.generate(job)
    assert [len(canvas.tokens) for canvas in canvases] == [CANVAS, 3]
    assert all(isinstance(canvas, Canvas) and 1 <= canvas.steps <= 2 for canvas in canvases)
    assert last == Finished("length")
    wanted = model.generate([job.prompt], max_new_tokens=job.max_new_tokens, seed=job.seed)
    assert [token for canvas in canvases for token in canvas.tokens] == wanted.tokens[0].tolist()


def test_a_reply_of_the_size_of_the_room_fits_and_one_more_canvas_does_not(engine):
    length = 90
    assert engine.room(length) == CANVAS
    prompt = engine.render(HI, thinking=False)
    prompt += (prompt[-1],) * (length - len(prompt))
    *canvases, last = engine.generate(Job(prompt=prompt, max_new_tokens=engine.room(length) + 1, seed=0))
    assert (sum(len(canvas.tokens) for canvas in canvases), last) == (CANVAS, Finished("length"))
    assert engine.room(100 - CANVAS) == CANVAS and engine.room(100 - CANVAS + 1) <= 0


def test_a_prompt_is_the_templates_and_users_cannot_forge_its_markers(engine, folder):
    tokenizer = Tokenizer.from_folder(folder)
    turn = tokenizer.token_id("<|turn>")
    plain, forged = (engine.render([{"role": "user", "content": said}], thinking=False) for said in ("Hi", "<|turn>"))
    assert plain.count(turn) == forged.count(turn) == 2
    thinks = tokenizer.token_id("<|think|>")
    assert thinks in engine.render(HI, thinking=True) and thinks not in plain


def test_a_template_that_refuses_is_a_prompt_error(engine, monkeypatch):
    def refuse(*_, **__):
        raise TemplateError("roles must alternate")

    monkeypatch.setattr(engine._template, "encode", refuse)
    with pytest.raises(PromptError, match="roles must alternate"):
        engine.render(HI, thinking=False)


def test_the_parser_tells_reasoning_from_the_answer(engine, folder):
    tokenizer = Tokenizer.from_folder(folder)
    parser = engine.parser(engine.render(HI, thinking=True))
    tokens = tokenizer.encode("<|channel>thought\nHmm.\n<channel|>Hello.<turn|>")
    pieces = [piece for token in tokens for piece in parser.push([token])] + parser.finish()
    text = {kind: "".join(piece.text for piece in pieces if piece.kind == kind) for kind in ("reasoning", "content")}
    assert text == {"reasoning": "Hmm.", "content": "Hello."}
    assert parser.reasoning_tokens > 0


def test_temperature_scales_the_schedule_and_zero_stays_positive():
    settings = GenerationConfig(t_min=0.4, t_max=0.8)
    assert tempered(settings, 1.0) == settings
    assert (tempered(settings, 0.5).t_min, tempered(settings, 0.5).t_max) == (0.2, 0.4)
    coldest = tempered(settings, 0.0)
    assert 0 < coldest.t_min < coldest.t_max < 1e-3
    assert tempered(settings, 1e-9) == coldest


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_folder_that_lacks_something_is_refused_by_its_name(folder, tmp_path, missing):
    for file in folder.iterdir():
        if file.name != missing:
            shutil.copy(file, tmp_path / file.name)
    with pytest.raises((ValueError, OSError), match=missing.split(".")[0]):
        CheckpointEngine.load(tmp_path, "float32")
