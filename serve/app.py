"""The application: routes, middlewares, and the worker's life. The caller brings the engine."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from serve import handlers
from serve.access import expect, log_requests, require_known_expectation, sign
from serve.config import ServeConfig
from serve.engine import Engine
from serve.errors import render_errors
from serve.handlers import CONFIG, CREATED, ENGINE, PROMPTS, SEEDS, WORKER
from serve.worker import Worker

ROUTES = (
    ("POST", "/v1/chat/completions", handlers.chat_completions),
    ("GET", "/v1/models", handlers.models),
    ("GET", "/v1/models/{id:.+}", handlers.model),
    ("GET", "/health", handlers.ready),
    ("GET", "/v1/health/live", handlers.live),
    ("GET", "/v1/health/ready", handlers.ready),
)


_PROMPT_THREADS = 2
"""Prompts that are rendered and tokenized at once: huge ones wait for each other, and hold up nothing else."""


def create_app(engine: Engine, config: ServeConfig) -> web.Application:
    """The server over any engine.

    Run it with `handler_cancellation=True`, so that a client that goes away frees the engine at once.
    """
    app = web.Application(
        middlewares=[log_requests, render_errors, require_known_expectation],
        client_max_size=config.max_body_mib * 2**20,
    )
    app[CONFIG] = config
    app[ENGINE] = engine
    app[WORKER] = Worker(engine, config.max_queue)
    app[PROMPTS] = ThreadPoolExecutor(_PROMPT_THREADS, thread_name_prefix="prompt")
    app[SEEDS] = random.Random(config.seed)
    app[CREATED] = int(time.time())
    for method, path, handler in ROUTES:
        for name in ("GET", "HEAD") if method == "GET" else (method,):
            app.router.add_route(name, path, handler, expect_handler=expect)
    app.on_response_prepare.append(sign)
    app.on_startup.append(_start)
    app.on_shutdown.append(_stop)
    return app


async def _start(app: web.Application) -> None:
    app[WORKER].start()


async def _stop(app: web.Application) -> None:
    """Runs when no new connection is taken any more and before open ones are closed."""
    await app[WORKER].close(app[CONFIG].shutdown_seconds)
    app[PROMPTS].shutdown(wait=False, cancel_futures=True)
