"""The benchmarks run, check before they time, and say what they measured. No time decides a test."""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import reading

from dgemma_jax import sharding
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B
from tools import bench, bench_head, bench_model, bench_moe, bench_quality, roofline
from tools.bench_timing import Peaks, Sample, figure
from tools.module_cost import matrix_flops

TINY = ["--checkpoint", str(reading.FOLDER / "text_only"), "--json"]


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
    if command[0] != "load":
        assert found["peaks"]["gflops"] > 0 and all(line["share"] > 0 for line in found["figures"])


@pytest.mark.parametrize(
    "command", [["step", "--context", "20"], ["moe", "--tokens", "16"], ["prefill", "--context", "20"]]
)
def test_a_mesh_is_used_and_reported(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(capsys, *command, *TINY, "--repeats", "1", "--mesh", "expert=2")
    assert found["settings"]["mesh"] == "expert=2 over 2 devices"
    assert all(line["median_ms"] > 0 for line in found["figures"])


def test_random_weights_are_made_on_their_devices_and_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_model.PRESETS, "mini", reading.model("text_only").config)

    def made(*mesh: str) -> Any:
        parser = argparse.ArgumentParser()
        bench_model.add_options(parser)
        return bench_model.model_of(parser.parse_args(["--preset", "mini", *mesh]))

    one, spread = made(), made("--mesh", "expert=2,model=2")
    for (path, whole), (_, part) in zip(*(nnx.to_flat_state(model.params) for model in (one, spread)), strict=True):
        assert part[...].sharding == sharding.parameter_sharding(part, spread.mesh), path
        np.testing.assert_allclose(part[...], whole[...], rtol=1e-6, err_msg=str(path))


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
