"""What Prometheus reads: NIM's names where the meaning is the same, and `diffusion_...` for what only a canvas has.

    worker's thread --add_event--> canvases, steps, times     HTTP side --count_requests--> requests, tokens, latencies
                                 \\______ one registry per app, read by `GET /metrics` ______/

Times to a first token are times to a whole canvas: nothing is sent before it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from serve.access import LOG, Handler
from serve.engine import Canvas, Event, Prefilled

_STEPS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 64, 128)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 50, 100, 200, 400, 800)
_SECONDS_PER_TOKEN = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


@dataclasses.dataclass
class Progress:
    """When a request for text came, and when its latest canvas was there (`time.monotonic`)."""

    asked: float = dataclasses.field(default_factory=time.monotonic)
    canvas: float | None = None


class Metrics:
    """The metrics of one server. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count_what_diffusion_does()
        self._count_what_clients_see()
        ProcessCollector(registry=self.registry)

    def _count_what_diffusion_does(self) -> None:
        to = self.registry
        self._canvases = Counter("diffusion_canvases", "Canvases committed.", registry=to)
        self._steps = Counter("diffusion_denoising_steps", "Denoising steps over all canvases.", registry=to)
        self._committed = Counter(
            "diffusion_committed_tokens", "Tokens of committed canvases, up to and with an end token.", registry=to
        )
        self._cached = Counter(
            "prefix_cached_tokens", "Tokens of prompts that an earlier prompt had begun with.", registry=to
        )
        self._steps_per_canvas = Histogram(
            "diffusion_steps_per_canvas", "Denoising steps that one canvas took.", registry=to, buckets=_STEPS
        )
        self._first_canvas, self._first_token = (
            Histogram(name, f"From the request to its first committed canvas{more}.", registry=to, buckets=_SECONDS)
            for name, more in (("time_to_first_canvas_seconds", ""), ("time_to_first_token_seconds", ", by NIM's name"))
        )
        self._per_token = Histogram(
            "time_per_output_token_seconds",
            "Time between two canvases of a reply, by the tokens of the second.",
            registry=to,
            buckets=_SECONDS_PER_TOKEN,
        )

    def _count_what_clients_see(self) -> None:
        to = self.registry
        self._requests = Counter("http_requests", "Answers; 499: the client left.", ["route", "status"], registry=to)
        self._success = Counter("request_success", "Requests for text that were answered in full.", registry=to)
        self._failure = Counter("request_failure", "Requests for text that failed or were given up.", registry=to)
        self._prompt, self._generated = (
            Counter(f"{name}_tokens", f"Tokens of {what}.", registry=to)
            for name, what in (("prompt", "prompts"), ("generation", "replies"))
        )
        self._request_prompt, self._request_generated = (
            Histogram(f"request_{name}_tokens", f"Tokens of one {what}.", registry=to, buckets=_TOKENS)
            for name, what in (("prompt", "prompt"), ("generation", "reply"))
        )
        self._latency = Histogram(
            "e2e_request_latency_seconds", "From a request for text to its last byte.", registry=to, buckets=_SECONDS
        )

    def follow(
        self,
        *,
        running: Callable[[], float],
        waiting: Callable[[], float],
        most: int,
        memory: Callable[[], float],
        up: Callable[[], bool],
    ) -> None:
        """Asks for the state of the engine at every reading; `most` requests may be open at once."""
        for name, what, read in (
            ("num_requests_running", "Requests the model works on.", running),
            ("num_requests_waiting", "Requests that wait for the model.", waiting),
            ("num_request_max", "Requests that may be open; more are answered 429.", lambda: most),
            ("gpu_cache_usage_perc", "Of the memory for keys and values, what requests take: 0 to 1.", memory),
            ("engine_up", "Whether the model works: 0 once it is broken.", up),
        ):
            Gauge(name, what, registry=self.registry).set_function(read)

    def add_event(self, event: Event, progress: Progress) -> None:
        """What happened to one reply, now."""
        match event:
            case Prefilled(cached_tokens):
                self._cached.inc(cached_tokens)
            case Canvas():
                self._add_canvas(event, progress, time.monotonic())

    def _add_canvas(self, canvas: Canvas, progress: Progress, now: float) -> None:
        self._canvases.inc()
        self._steps.inc(canvas.steps)
        self._committed.inc(len(canvas.tokens))
        self._steps_per_canvas.observe(canvas.steps)
        if progress.canvas is None:
            self._first_canvas.observe(now - progress.asked)
            self._first_token.observe(now - progress.asked)
        elif canvas.tokens:
            self._per_token.observe((now - progress.canvas) / len(canvas.tokens))
        progress.canvas = now

    def add_request(self, route: str, status: int, seconds: float, noted: dict[str, object]) -> None:
        """One answered request; what its handler noted for the log says whether it was one for text."""
        self._requests.labels(route, str(status)).inc()
        prompt, generated = noted.get("prompt_tokens"), noted.get("completion_tokens")
        if not isinstance(prompt, int) or not isinstance(generated, int):
            return
        (self._success if status == 200 and "error" not in noted else self._failure).inc()
        self._latency.observe(seconds)
        for tokens, total, each in (
            (prompt, self._prompt, self._request_prompt),
            (generated, self._generated, self._request_generated),
        ):
            total.inc(tokens)
            each.observe(tokens)


METRICS = web.AppKey("metrics", Metrics)


@web.middleware
async def count_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Counts every request under its route; what no route takes is counted together."""
    start, status = time.monotonic(), 499
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "none"
        request.app[METRICS].add_request(route, status, time.monotonic() - start, request[LOG])


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics` and `GET /v1/metrics`: in the text format that the reader asks for."""
    try:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    except TypeError:  # of a version that is no number
        encode, content_type = choose_encoder("")
    return web.Response(body=encode(request.app[METRICS].registry), headers={"Content-Type": content_type})
