"""`python -m tools.bench serve`: a running server under load, and whether it mixes anything up."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence

import aiohttp

from tools.bench_clients import Asked, Told, drive, resident_bytes, workload
from tools.options import names, positive

_SHOWN = 5
_MEMORY_SAMPLES = 10
MIB = 2**20


def add_command(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    serve = commands.add_parser(
        "serve", help="throughput and latency of a running server; exit 1 if an answer fails or differs"
    )
    serve.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default %(default)s)")
    serve.add_argument("--api-key", help="key to bring, where the server asks for one")
    serve.add_argument("--requests", type=positive, default=200, help="of each run (default %(default)s)")
    serve.add_argument(
        "--clients",
        type=_counts,
        default=(8,),
        metavar="N[,N...]",
        help="requests that are open at a time; a run for each, compared with the first (default 8)",
    )
    serve.add_argument("--rounds", type=positive, default=1, help="repeats all runs in turn (default %(default)s)")
    serve.add_argument("--seed", type=int, default=0, help="of the drawn requests (default %(default)s)")
    serve.add_argument("--longest", type=positive, default=1000, help="characters of a prompt (default %(default)s)")
    serve.add_argument(
        "--check", type=int, metavar="N", help="requests asked again alone, to compare (default: all of a run; 0: none)"
    )
    serve.add_argument("--timeout", type=positive, default=600, help="seconds for a request (default %(default)s)")
    serve.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    serve.set_defaults(run=run)


def _counts(text: str) -> tuple[int, ...]:
    if counts := tuple(positive(count) for count in names(text)):
        return counts
    raise argparse.ArgumentTypeError("must name at least one number")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: how many clients, how long it took, what was told, and the server's resident bytes on the way."""

    clients: int
    seconds: float
    told: list[Told]
    resident: list[int]


def run(options: argparse.Namespace) -> int:
    """Measures, prints, and says by the exit status whether all is right."""
    runs, differing = asyncio.run(_measure(options))
    report = {str(clients): summary([run for run in runs if run.clients == clients]) for clients in options.clients}
    resident = [bytes for run in runs for bytes in run.resident]
    failed = [told for run in runs for told in run.told if told.error]
    if options.json:
        runs_report = {"clients": report, "resident_bytes": resident, "compared": differing is not None}
        print(json.dumps(runs_report | {"failed": len(failed), "differing": differing or []}, indent=1))
    else:
        _print_table(report, resident, differing)
    for told in failed[:_SHOWN]:
        print(f"bench: request {told.index} failed: {told.error}", file=sys.stderr)
    return int(bool(failed or differing))


async def _measure(options: argparse.Namespace) -> tuple[list[Run], list[int] | None]:
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    timeout = aiohttp.ClientTimeout(total=options.timeout)
    connector = aiohttp.TCPConnector(limit=0)
    base = options.url.rstrip("/") + "/"
    async with aiohttp.ClientSession(base, headers=headers, timeout=timeout, connector=connector) as session:
        requests = workload(options.requests, await _model(session, base), options.longest, options.seed)
        runs = [
            await _one_run(session, requests, clients) for _ in range(options.rounds) for clients in options.clients
        ]
        if options.check == 0:
            return runs, None
        again = requests[: options.check]
        print(f"bench: {len(again)} requests again, alone", file=sys.stderr)
        return runs, _differing(runs, await drive(session, again, 1, lambda: None))


async def _model(session: aiohttp.ClientSession, base: str) -> str:
    """The server's main model name. Raises OSError where there is no such server."""
    try:
        async with session.get("v1/models") as response:
            if response.status != 200:
                raise OSError(f"{base} answers {response.status}: {(await response.text())[:300]}")
            return str((await response.json())["data"][0]["id"])
    except (aiohttp.ClientError, ValueError, LookupError) as error:
        raise OSError(f"{base} is no server of this kind: {error}") from None


async def _one_run(session: aiohttp.ClientSession, requests: Sequence[Asked], clients: int) -> Run:
    print(f"bench: {len(requests)} requests, {clients} at a time", file=sys.stderr)
    resident: list[int] = []
    done, start = 0, time.perf_counter()
    step = max(1, len(requests) // _MEMORY_SAMPLES)
    sampling: set[asyncio.Task[None]] = set()

    async def sample() -> None:
        with contextlib.suppress(aiohttp.ClientError):
            resident.extend(filter(None, [await resident_bytes(session)]))

    def count() -> None:
        nonlocal done
        done += 1
        if done % step == 0:
            sampling.add(asyncio.ensure_future(sample()))

    told = await drive(session, requests, clients, count)
    seconds = time.perf_counter() - start
    await asyncio.gather(*sampling)
    return Run(clients, seconds, told, resident)


def _differing(runs: Sequence[Run], alone: Sequence[Told]) -> list[int]:
    """The requests whose text in some run was another one than alone."""
    differing = set()
    for told in [one for run in runs for one in run.told[: len(alone)]]:
        wanted = alone[told.index]
        if told.error is None and (told.text, told.tokens) != (wanted.text, wanted.tokens):
            differing.add(told.index)
            if len(differing) <= _SHOWN:
                found = f"{told.text!r}, but alone {wanted.text!r} {wanted.error or ''}"
                print(f"bench: request {told.index} differs: {found}", file=sys.stderr)
    return sorted(differing)


def summary(runs: Sequence[Run]) -> dict[str, float]:
    """The figures of runs with the same number of clients; latencies in seconds."""
    told = [one for run in runs for one in run.told]
    well = [one for one in told if one.error is None]
    seconds = sum(run.seconds for run in runs)
    first, gaps = [one.arrivals[0] for one in well if one.arrivals], [gap for one in well for gap in one.gaps]
    return {
        "requests": len(told),
        "failed": len(told) - len(well),
        "seconds": seconds,
        "tokens_per_second": sum(one.tokens for one in well) / seconds,
        "requests_per_second": len(well) / seconds,
        "first_canvas_p50": _percentile(first, 50),
        "first_canvas_p95": _percentile(first, 95),
        "next_canvas_p50": _percentile(gaps, 50),
        "next_canvas_p95": _percentile(gaps, 95),
        "request_p50": _percentile([one.seconds for one in well], 50),
        "request_p95": _percentile([one.seconds for one in well], 95),
        "steps_per_canvas": sum(one.steps for one in well) / max(1, sum(one.canvases for one in well)),
    }


def _percentile(values: Sequence[float], percent: int) -> float:
    """0 where there are no values."""
    if len(values) < 2:
        return sum(values)
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _print_table(report: dict[str, dict[str, float]], resident: Sequence[int], differing: list[int] | None) -> None:
    columns = list(report)
    print(f"{'clients':22}" + "".join(f"{clients:>12}" for clients in columns))
    for name in report[columns[0]]:
        print(f"{name:22}" + "".join(f"{report[clients][name]:12.6g}" for clients in columns))
    base = report[columns[0]]["tokens_per_second"]
    if len(columns) > 1 and base:
        ratios = (report[clients]["tokens_per_second"] / base for clients in columns)
        print(f"{'throughput ratio':22}" + "".join(f"{ratio:12.3f}" for ratio in ratios))
    if resident:
        print("resident MiB          " + " ".join(f"{bytes / MIB:.0f}" for bytes in resident))
    print("texts compared with the same request alone: " + _verdict(differing))


def _verdict(differing: list[int] | None) -> str:
    if differing is None:
        return "not asked for"
    return (
        f"{len(differing)} differ (rounding makes some, unless the server has --rows-apart)"
        if differing
        else "all equal"
    )
