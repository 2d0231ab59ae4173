"""The benchmarks run, check before they time, and say what they measured. No time decides a test."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import reading

from dgemma_jax import sharding
from dgemma_jax.checkpoint.names import entries
from dgemma_jax.checkpoint.quantize import predicted_bytes
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, FULL, MINI, SLIDING, ModelConfig
from dgemma_jax.model import attention
from dgemma_jax.model.quantized import Quantized
from tools import (
    bench,
    bench_head,
    bench_model,
    bench_moe,
    bench_prefill,
    bench_quality,
    bench_step,
    bench_timing,
    roofline,
)
from tools.bench_timing import Peaks, Sample, figure
from tools.module_cost import matrix_flops

FOLDER = str(reading.FOLDER / "text_only")
TINY = ["--checkpoint", FOLDER, "--json"]
RANDOM = ["--config", FOLDER, "--json"]


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert bench.main(list(arguments)) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("command", "figures"),
    [
        (["step", *TINY, "--context", "20", "--repeats", "1"], ["denoising step"]),
        (["moe", *TINY, "--tokens", "16", "--repeats", "1"], sorted({*bench_moe.BACKENDS} - {"grouped_blocks", "gmm"})),
        (["head", *TINY, "--repeats", "1"], ["materialised", "streaming"]),
        (["prefill", *TINY, "--context", "20", "--repeats", "1"], ["prefill", "commit"]),
        (
            ["load", *TINY, "--quantize", "int8", "--mesh", "expert=2"],
            ["load", "compile a step", "compile it again, cached"],
        ),
    ],
)
def test_every_benchmark_reports(command: list[str], figures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(capsys, *command)
    assert found["benchmark"] == command[0]
    assert {line["name"] for line in found["figures"]} == set(figures)
    assert all(line["median_ms"] > 0 for line in found["figures"])
    shared = [line for line in found["figures"] if not line["name"].startswith("compile")]
    assert all(line["share"] > 0 for line in shared)
    assert command[0] == "load" or found["peaks"]["gflops"] > 0


@pytest.mark.parametrize(
    "command",
    [
        ["step", "--context", "20", "--rows", "2", "--quantize", "int8"],
        ["moe", "--tokens", "16"],
        ["prefill", "--context", "20", "--rows", "2"],
        ["head", "--rows", "2"],
    ],
)
def test_random_weights_of_any_configuration(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(capsys, *command, *RANDOM, "--repeats", "1")
    assert found["settings"]["model"] == FOLDER
    assert found["settings"].get("rows", 2) == 2 and all(line["share"] > 0 for line in found["figures"])


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_quantised_weights_are_measured(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(capsys, "moe", "--tokens", "16", *RANDOM, "--repeats", "1", "--quantize", kind)
    assert found["settings"]["quantize"] == kind
    assert "ragged_dot" not in {line["name"] for line in found["figures"]}, "which needs full weights"


def test_a_checkpoint_is_quantised_as_it_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(capsys, "prefill", *TINY, "--context", "20", "--repeats", "1", "--quantize", "int4")
    assert found["settings"]["quantize"] == "int4"


def test_full_weights_of_a_cpu_are_mapped_and_have_no_share_of_a_reading(capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(capsys, "load", *TINY, "--dtype", "float32")
    assert "share" not in found["figures"][0] and found["plain reads of the files, s"] > 0


@pytest.mark.parametrize(
    "command", [["step", "--context", "20"], ["moe", "--tokens", "16"], ["prefill", "--context", "20"]]
)
def test_a_mesh_is_used_and_reported(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(capsys, *command, *TINY, "--repeats", "1", "--mesh", "expert=2")
    assert found["settings"]["mesh"] == "expert=2 over 2 devices"
    assert all(line["median_ms"] > 0 for line in found["figures"])


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for add in (bench_model.add_options, bench_model.add_layers, bench_model.add_prompts):
        add(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("kind", [(), ("--quantize", "int8"), ("--quantize", "int4")])
def test_random_weights_are_made_on_their_devices_and_are_those_of_one(kind: tuple[str, ...]) -> None:
    one = bench_model.model_of(options("--config", FOLDER, *kind))
    spread = bench_model.model_of(options("--config", FOLDER, *kind, "--mesh", "expert=2,model=2"))
    for (path, whole), (_, part) in zip(*(nnx.to_flat_state(model.params) for model in (one, spread)), strict=True):
        if not isinstance(part[...], Quantized):
            assert part[...].sharding == sharding.parameter_sharding(part, spread.mesh), path
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
            np.testing.assert_allclose(np.asarray(b, np.float32), np.asarray(a, np.float32), rtol=1e-6, err_msg=path)


def many_experts() -> ModelConfig:
    """Six layers with as many experts as the real ones have, narrow."""
    sizes = {"hidden_size": 128, "moe_intermediate_size": 16, "intermediate_size": 32, "vocab_size": 1024}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "global_head_dim": 32}
    return dataclasses.replace(MINI, text=dataclasses.replace(MINI.text, **sizes))


def test_random_weights_route_as_evenly_as_is_asked_for_in_every_layer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default as chance has it where 256 tokens choose 8 of 128 experts each."""
    monkeypatch.setitem(bench_model.PRESETS, "mini", many_experts())
    even, skewed = bench_model.model_of(options()), bench_model.model_of(options("--skew", "6"))
    cache = even.prefill(bench_model.tokens_of(options(), even.config, 300))
    _, (_, _, state, *_) = bench_step.prepared(even, cache)
    for model, skew, least, most in ((even, "1", 1.2, 2.5), (skewed, "6", 3.5, 7)):
        found = bench_step.busiest(bench_step.routings(model, cache, state), model.config.text)
        assert len(found) == 6 and least < min(found) and max(found) < most
        alone = ran(capsys, "moe", "--json", "--repeats", "1", "--backends", "expert_blocks", "--skew", skew)
        assert least < alone[bench_step.BUSIEST] < most


def test_loops_over_filled_keys_count_as_often_as_the_context_fills_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what a step computes, of the useful, is the same for a context in one piece and one in many."""
    wide, context = many_experts(), 1700
    text = dataclasses.replace(wide.text, layer_types=(SLIDING, FULL), num_experts=4, top_k_experts=2)
    monkeypatch.setitem(bench_model.PRESETS, "mini", dataclasses.replace(wide, text=text))
    monkeypatch.setattr(attention, "LEAST_BLOCK", 1024)  # no less than the rings hold, as in the 26B
    model = bench_model.model_of(options())
    cache = model.prefill(bench_model.tokens_of(options(), model.config, context))
    found = []
    for most in (2**23, 1):  # all keys at once; a block at a time
        monkeypatch.setattr(attention, "MOST_SCORES", most)
        jax.clear_caches()
        step, _ = bench_step.prepared(model, cache)
        work = roofline.step(text, model.config.canvas_length, context, 4)
        found.append(bench_step.module(step, model, 1, context, work)["arithmetic, of the useful"])
    assert found[1] == pytest.approx(found[0], rel=0.01)


def test_a_routing_that_cannot_be_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for command, problem in (
        (["moe", *RANDOM, "--skew", "3"], "--skew must be from 1 to less than 3"),
        (["step", *RANDOM, "--skew", "0.5"], "--skew must be from 1"),
        (["step", *TINY, "--skew", "2"], "a checkpoint routes as it does"),
    ):
        assert bench.main(command) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--dtype", "bfloat16"], ["--rows", "2"], ["--quantize", "int8"]])
def test_only_what_can_be_compared_is_timed_against_transformers(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["step", *TINY, "--against", "transformers", *more]) == 2
    assert "--against compares one canvas in float32" in capsys.readouterr().err


def test_a_peer_that_does_not_agree_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In place of transformers one that finds all tokens equally likely."""
    peer = SimpleNamespace(
        experts="none", step=None, logits=lambda canvas, _: np.zeros((*canvas.shape, 120), np.float32)
    )
    monkeypatch.setitem(sys.modules, "tools.bench_transformers", SimpleNamespace(Peer=lambda *_: peer))
    assert bench.main(["step", *TINY, "--context", "20", "--against", "transformers"]) == 2
    assert "the logits differ by" in capsys.readouterr().err


def test_a_timed_commit_is_that_of_generation_at_one_place_of_one_cache() -> None:
    made = reading.model("text_only")
    tokens, canvas = np.arange(5)[None], np.arange(16)[None] + 3
    again = bench_prefill.committing(made, made.prefill(tokens), canvas)
    found, wanted = jax.tree.map(np.asarray, again()), made.commit(made.prefill(tokens), canvas)
    for one, other in zip(found.layers, wanted.layers, strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(found.length_B[0]) == int(again().length_B[0]) == 5


def test_a_mesh_that_cannot_be_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["step", *TINY, "--mesh", "expert=5"]) == 2
    assert "expert=5 does not divide the model's 12 experts" in capsys.readouterr().err


def test_the_table_says_the_same_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["head", *TINY[:2], "--repeats", "1"]) == 0
    text = capsys.readouterr().out
    assert "measured peaks" in text and "streaming, times as fast as materialised" in text and "roofline" in text


def test_backends_that_do_not_agree_are_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(bench_moe.BACKENDS, "expert_blocks", lambda x, *_: x)
    assert bench.main(["moe", *TINY, "--tokens", "16"]) == 2
    assert "differ by" in capsys.readouterr().err
    monkeypatch.setitem(bench_head.AGREE, "float32", 0.0)
    assert bench.main(["head", *TINY]) == 2
    assert "nats, wanted at most" in capsys.readouterr().err


def test_an_unknown_backend_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["moe", *TINY, "--backends", "fastest"]) == 2
    assert "--backends must be some of all_experts, " in capsys.readouterr().err


def test_rounds_of_an_accelerator_are_of_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_timing._CALLS, "cpu", 3)
    called: list[str] = []
    found = bench_timing.interleaved({name: functools.partial(called.append, name) for name in "ab"}, 2)
    assert "".join(called) == "ab" + "aaabbb" * 2, "a warm-up, then both in turn"
    assert len(found["a"].seconds) == len(found["b"].seconds) == 2


def test_a_share_is_the_least_time_at_the_peaks_of_the_median() -> None:
    peaks, sample = Peaks(flops=100.0, bytes=10.0), Sample((3.0, 4.0, 5.0))
    assert figure("", sample, roofline.Work(flops=200.0, bytes=1.0), peaks)["share"] == 0.5
    assert figure("", sample, roofline.Work(flops=1.0, bytes=30.0), peaks)["floor_ms"] == 3000.0


def test_the_useful_work_of_the_published_model_is_that_of_its_shapes() -> None:
    """2.66 TFLOP and 52.6 GB a step, computed apart from this code, for a context of 4096 without the vision tower."""
    work = roofline.step(DIFFUSION_GEMMA_26B_A4B.text, 256, 4096, 2)
    assert work.flops == pytest.approx(2.66e12, rel=0.01)
    # The embedding counts once, where it is read once: 1.48 GB less, and no logits.
    assert work.bytes == pytest.approx(52.6e9 - 1.48e9 - 0.27e9, rel=0.01)


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_the_bytes_of_a_step_are_those_of_the_weights_as_they_are_stored(kind: str | None) -> None:
    """With so many tokens that every expert is chosen, and nothing cached. Norms, which are small, are left out."""
    config = dataclasses.replace(MINI, text=dataclasses.replace(MINI.text, vocab_size=1024))
    stored = sum(predicted_bytes(entry, kind, 2) for entry in entries(config))
    assert roofline.step(config.text, 256, 0, 2, 100, kind).bytes == pytest.approx(stored, rel=2e-3)


def test_rows_share_weights_and_each_has_its_cache_and_its_arithmetic() -> None:
    text = DIFFUSION_GEMMA_26B_A4B.text
    one, four = roofline.step(text, 256, 4096, 2), roofline.step(text, 256, 4096, 2, 4)
    assert four.flops == pytest.approx(4 * one.flops)
    cache = one.bytes - roofline.step(text, 256, 0, 2).bytes
    assert four.bytes - one.bytes == pytest.approx(3 * cache, rel=1e-3)


def test_reading_takes_no_more_of_the_last_layer_than_keys_and_values() -> None:
    text = MINI.text
    saved = roofline.layers(text, 256, 512, 4).flops - roofline.reading(text, 256, 512, 4).flops
    assert roofline.experts(text, 256, 4).flops < saved < 2 / 6 * roofline.layers(text, 256, 512, 4).flops


def test_products_in_loops_count_as_often_as_they_run() -> None:
    weight, x = jnp.zeros((6, 8, 8)), jnp.zeros((4, 8))
    scanned = jax.jit(lambda x, w: jax.lax.scan(lambda x, m: (x @ m, None), x, w)[0]).lower(x, weight).compile()
    assert matrix_flops(scanned.as_text()) == 6 * 2 * 4 * 8 * 8
    endless = jax.jit(lambda x, w: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w[0], x))
    assert matrix_flops(endless.lower(x, weight).compile().as_text(), unknown_trips=5) == 5 * 2 * 4 * 8 * 8
    either = jax.jit(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0] @ w[1], lambda: x @ w[2]))
    assert matrix_flops(either.lower(x, weight).compile().as_text()) == 2 * 2 * 4 * 8 * 8


def test_quantised_weights_are_compared_with_full_ones_on_the_same_questions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers, which take long, are made up; the logits are the models'."""
    asked = []

    def answer(model: Any, template: Any, examples: Any) -> SimpleNamespace:
        asked.append(examples)
        return SimpleNamespace(share=1 / len(asked))

    monkeypatch.setattr(bench_quality, "score", answer)
    found = ran(capsys, "quality", "--count", "1", "--skill", "arithmetic", "--json")
    full, eight, four = found["figures"]
    assert [full["name"], eight["name"], four["name"]] == ["full", "int8", "int4"]
    assert 0 < full["logit_error"] < four["logit_error"] and eight["logit_error"] < four["logit_error"]
    assert [figure["shares"] for figure in found["figures"]] == [{"arithmetic": 1 / n} for n in (1, 2, 3)]
    assert len(asked[0]) == 1 and asked[0] == asked[1] == asked[2]


def test_errors_of_logits_are_parts_of_their_spread() -> None:
    wanted = np.asarray([[0.0, 4.0], [4.0, 0.0]])
    assert bench_quality.errors([wanted], [wanted]) == {"logit_error": 0.0, "same_likeliest": 1.0}
    moved = bench_quality.errors([np.asarray([[0.5, 4.5], [3.5, 5.0]])], [wanted])
    assert moved == {"logit_error": 0.25, "same_likeliest": 0.5}
