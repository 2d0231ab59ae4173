"""The application: routes, middlewares, and the worker's life. The caller brings the engine."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from aiohttp.typedefs import Middleware

from serve.about import release
from serve.access import expect, log_requests, require_known_expectation, sign
from serve.auth import require_key
from serve.bodies import STOPPING
from serve.config import ServeConfig
from serve.cors import answer_preflights, grant
from serve.engine import Engine
from serve.errors import render_errors
from serve.handlers import CONFIG, CREATED, ENGINE, MEDIA, MEDIA_MEMORY, PROMPTS, SEEDS, WORKER
from serve.media_fetch import MediaFetcher
from serve.media_limits import MediaLimits
from serve.media_memory import MediaMemory
from serve.media_parts import MediaReader
from serve.metrics import METRICS, Metrics, count_requests
from serve.openapi import DOCUMENT, document
from serve.routes import ROUTES
from serve.worker import Worker

_PROMPT_THREADS = 2
"""Prompts that are rendered and tokenized at once: huge ones wait for each other, and hold up nothing else."""


def create_app(engine: Engine, config: ServeConfig) -> web.Application:
    """The server over any engine.

    Run it with `handler_cancellation=True`, so that a client that goes away frees the engine at once.
    """
    app = web.Application(
        middlewares=_middlewares(config),
        client_max_size=config.max_body_mib * 2**20,
    )
    app[CONFIG] = config
    app[ENGINE] = engine
    app[METRICS] = Metrics()
    app[WORKER] = worker = Worker(engine, config.max_queue, config.request_seconds, app[METRICS])
    app[METRICS].follow(
        running=lambda: worker.running,
        waiting=lambda: worker.waiting,
        most=worker.most,
        memory=lambda: engine.memory_share,
        up=lambda: worker.state != "failed",
    )
    app[PROMPTS] = ThreadPoolExecutor(_PROMPT_THREADS, thread_name_prefix="prompt")
    limits = MediaLimits(allowed_domains=config.allowed_media_domains, allow_private=config.allow_private_media)
    app[MEDIA] = MediaReader(engine, MediaFetcher(limits))
    app[MEDIA_MEMORY] = MediaMemory(config.media_memory)
    app[SEEDS] = random.Random(config.seed)
    app[CREATED] = int(time.time())
    app[STOPPING] = asyncio.Event()
    app[DOCUMENT] = document(ROUTES, release(), keys=bool(config.api_key))
    for route in ROUTES:
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            app.router.add_route(method, route.path, route.handler, expect_handler=expect)
    app.on_response_prepare.append(sign)
    if config.cors_origin:
        app.on_response_prepare.append(grant(config.cors_origin))
    app.on_startup.append(_start)
    app.on_shutdown.append(_stop)
    return app


def _middlewares(config: ServeConfig) -> list[Middleware]:
    """What every request goes through, the outermost first. A browser's preflight brings no key."""
    return [
        log_requests,
        count_requests,
        render_errors,
        *([answer_preflights(config.cors_origin)] if config.cors_origin else []),
        *([require_key(config.api_key)] if config.api_key else []),
        require_known_expectation,
    ]


async def _start(app: web.Application) -> None:
    app[WORKER].start()


async def _stop(app: web.Application) -> None:
    """Runs when no new connection is taken any more and before open ones are closed."""
    app[STOPPING].set()
    await app[WORKER].close(app[CONFIG].shutdown_seconds)
    app[PROMPTS].shutdown(wait=False, cancel_futures=True)
    await app[MEDIA].close()
