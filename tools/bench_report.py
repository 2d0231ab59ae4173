"""What a benchmark prints: a table for people, or one JSON object."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import jax

from tools.bench_timing import Peaks


def printing(measure: Callable[[argparse.Namespace], str]) -> Callable[[argparse.Namespace], int]:
    """The command that prints what `measure` reports, and returns the exit status."""

    def run(options: argparse.Namespace) -> int:
        print(measure(options))
        return 0

    return run


def machine() -> dict[str, Any]:
    """What the figures were measured on; no names of hosts."""
    device = jax.devices()[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "jax": jax.__version__,
    }


def report(
    what: str, settings: dict[str, Any], figures: list[dict[str, Any]], peak: Peaks | None = None, **more: Any
) -> dict[str, Any]:
    """Everything that is known of a run. `more`: checks and ratios."""
    found: dict[str, Any] = {"benchmark": what, "machine": machine(), "settings": settings, "figures": figures, **more}
    if peak is not None:
        found["peaks"] = {"gflops": peak.flops / 1e9, "gigabytes_per_second": peak.bytes / 1e9}
    return found


def shown(found: dict[str, Any], as_json: bool) -> str:
    """The report as text."""
    if as_json:
        return json.dumps(found, indent=1)
    of = found["machine"]
    lines = [f"{found['benchmark']}: " + ", ".join(f"{key} {value}" for key, value in found["settings"].items())]
    lines.append(f"on {of['devices']} x {of['device']}, {of['cores']} cores, {of['memory_gib']} GiB, JAX {of['jax']}")
    if "peaks" in found:
        gflops, bandwidth = found["peaks"]["gflops"], found["peaks"]["gigabytes_per_second"]
        lines.append(f"measured peaks: matrix product {gflops:,.0f} GFLOP/s, copy {bandwidth:,.1f} GB/s")
    lines += ["", f"{'':34}{'median ms':>12}{'spread':>10}{'floor ms':>11}{'of roofline':>13}"]
    lines += [_line(figure) for figure in found["figures"]]
    known = {"benchmark", "machine", "settings", "figures", "peaks"}
    lines += [""] + [f"{key}: {_short(value)}" for key, value in found.items() if key not in known]
    return "\n".join(lines).rstrip()


def _line(figure: dict[str, Any]) -> str:
    text = f"{figure['name']:34}{figure['median_ms']:12,.2f}{figure['spread_ms']:10,.2f}"
    if "share" in figure:
        text += f"{figure['floor_ms']:11,.2f}{figure['share']:12.0%} "
    return text


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(one)}" for key, one in value.items())
    return str(value)
