"""`bench all`: one model for all its parts, reports in a folder, and what happens to parts that fail."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import pytest
from golden import reading

import dgemma_jax
from tools import bench, bench_all, bench_model

FOLDER = str(reading.FOLDER / "text_only")


def test_all_parts_share_a_model_and_each_leaves_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, make = [], bench_model._made

    def counted(options: argparse.Namespace) -> dgemma_jax.Model:
        made.append(options.quantize)
        return make(options)

    monkeypatch.setattr(bench_model, "_made", counted)
    parts = "step-1,step-4,step-1-int8,head-1"
    assert (
        bench.main(
            ["all", "--config", FOLDER, "--parts", parts, "--out", str(tmp_path), "--context", "20", "--repeats", "1"]
        )
        == 0
    )
    assert made == [None, "int8"]
    assert {path.stem for path in tmp_path.iterdir()} == set(parts.split(","))
    assert json.loads((tmp_path / "step-4.json").read_text())["settings"]["rows"] == 4
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_parts_that_fail_or_find_no_time_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # No expert of this model can have six times the mean of the tokens.
    command = ["all", "--checkpoint", FOLDER, "--parts", "moe-crowded,head-1", "--out", str(tmp_path), "--repeats", "1"]
    assert bench.main(command) == 1
    assert "not measured: moe-crowded\n" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["head-1.json"]
    assert bench.main([*command, "--seconds", "1e-9"]) == 1
    assert "not measured: moe-crowded, head-1" in capsys.readouterr().err
    assert bench.main(["all", "--checkpoint", FOLDER, "--parts", "fastest", "--out", str(tmp_path)]) == 2
    assert "--parts must be some of step-1" in capsys.readouterr().err


def test_programs_are_compiled_beside_each_other_and_a_part_that_fails_is_left_to_its_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    asked = bench.parser().parse_args(
        ["all", "--checkpoint", FOLDER, "--parts", "moe-crowded,head-1", "--out", "unused"]
    )
    try:
        with bench_model.shared():
            bench_all._compile_together(asked, str(tmp_path))
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    told = capsys.readouterr().err
    assert "streaming: round 1" in told and "round 2" not in told
    assert "bench: moe-crowded, compiled beside the others: --skew must be" in told
