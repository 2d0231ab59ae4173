"""`python -m serve`: reads the flags, takes the port, loads the checkpoint, serves until SIGTERM or Ctrl-C.

What the caller can put right (a taken port, a folder that is no checkpoint) is one message on stderr and status 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from aiohttp import web

from serve import group
from serve.access import log_what_is_no_http
from serve.app import create_app
from serve.config import ServeConfig, parse_flags
from serve.engine import Engine
from serve.handlers import WORKER

if TYPE_CHECKING:
    from serve.checkpoint_engine import CheckpointEngine

logger = logging.getLogger("serve")
_GROUP_LOST, _CANNOT_START, _INTERRUPTED, _TERMINATED = 1, 2, 130, 143
T = TypeVar("T")
_IDLE_SECONDS = 120.0  # of a connection before and between requests, slow headers included; proxies give up before
_HANDLER_SECONDS = 5.0  # for the last bytes, after the worker has finished or failed every reply


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server; returns the exit status."""
    config = parse_flags(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log_what_is_no_http()
    logging.getLogger("jax").setLevel(logging.WARNING)  # it reports every accelerator it does not find
    try:
        with contextlib.ExitStack() as resources:
            try:
                if not _interruptibly(lambda: group.leads(config)):
                    return _follow(config)
                # The port comes before the checkpoint: loading may take minutes.
                listener = resources.enter_context(_listen(config.host, config.port))
                _warn_of_open_door(config)
                engine = _interruptibly(lambda: _load(config))
                resources.callback(engine.close)  # ends what is still being compiled; in a group, sends the others home
            except (ValueError, OSError) as error:
                print(f"serve: {error}", file=sys.stderr)
                return _CANNOT_START
            return asyncio.run(serve(engine, config, listener))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except _TerminatedError:
        return _TERMINATED


async def serve(engine: Engine, config: ServeConfig, listener: socket.socket) -> int:
    """Serves until a signal comes or the engine cannot start; returns the exit status."""
    app = create_app(engine, config)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=_HANDLER_SECONDS,
        keepalive_timeout=_IDLE_SECONDS,
    )
    await runner.setup()
    try:
        stop = _stop_signal()
        await web.SockSite(runner, listener).start()
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        logger.info("%s at %s/v1, warming up", config.names[0], address)
        await _either(app[WORKER].warm, stop)
        if app[WORKER].state == "failed":
            return _CANNOT_START
        if app[WORKER].state == "ready":
            logger.info("a page to chat in a browser: %s/ui", address)
        if config.coordinator is not None and await group.is_lost(app[WORKER].broken, stop):
            return _GROUP_LOST  # so that whoever started the group starts it again
        await stop.wait()
        logger.info("stopping; open requests have %g s, another Ctrl-C ends them now", config.shutdown_seconds)
        return 0
    except OSError as error:
        print(f"serve: cannot listen on {config.host} port {config.port}: {error.strerror}", file=sys.stderr)
        return _CANNOT_START
    finally:
        await runner.cleanup()


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, not listening yet. Raises OSError that names the address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        return listener
    except UnicodeError:  # what the name would be on the wire cannot be written
        raise ValueError(f"--host {host} is no address and no name of a machine") from None
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


def _warn_of_open_door(config: ServeConfig) -> None:
    if not config.api_key and config.host not in ("localhost", "::1") and not config.host.startswith("127."):
        logger.warning("--host %s may let other machines in, and no --api-key is asked for", config.host)


class _TerminatedError(Exception):
    """SIGTERM came before there was anything to finish."""


def _interruptibly(work: Callable[[], T], patience: float = 0.0) -> T:
    """The result of `work`, which runs on a thread of its own: this one ends at a signal, whatever `work` is inside of.

    `patience`: seconds that `work` still has after SIGTERM.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        _TerminatedError: SIGTERM. Said here and not left to the system, which lets process 1 of a container go on.
    """
    result: Future[T] = Future()
    deadline = math.inf

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    def terminate(*_: object) -> None:
        nonlocal deadline
        if not patience:
            raise _TerminatedError
        deadline = min(deadline, time.monotonic() + patience)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        threading.Thread(target=run, name="load", daemon=True).start()
        while not result.done():
            wait((result,), timeout=0.5)  # a signal in the instant before a wait does not end that wait
            if time.monotonic() > deadline:
                raise _TerminatedError
        return result.result()
    finally:
        signal.signal(signal.SIGTERM, before)


def _follow(config: ServeConfig) -> int:
    """Does what the first process does, until it sends this one home; returns the exit status."""
    import dgemma_jax
    from dgemma_jax.engine import follow
    from dgemma_jax.processes import give_up

    try:
        model = _interruptibly(lambda: _loaded(config, dgemma_jax.load))
    except BaseException as error:
        give_up(f"to load the checkpoint: {error or type(error).__name__}")
        raise
    logger.info("following process 0")
    try:
        # Whoever stops a group may stop all of its processes at once: the first one still has requests to finish.
        _interruptibly(lambda: follow(model), patience=config.shutdown_seconds + _HANDLER_SECONDS)
    except Exception:
        logger.critical("this process cannot go on, and the group cannot without it", exc_info=True)
        return _GROUP_LOST
    return 0


def _load(config: ServeConfig) -> CheckpointEngine:
    """The engine over the checkpoint. Raises ValueError or OSError that says what is wrong."""
    from serve.checkpoint_engine import CheckpointEngine

    engine = _loaded(
        config,
        CheckpointEngine.load,
        slots=config.slots,
        max_context=config.max_model_len,
        kv_bytes=config.kv_memory,
        reuse=config.prefix_reuse,
        apart=config.rows_apart,
        warm_up=config.warm_up,
    )
    logger.info("loaded %s as %s on %s", config.checkpoint, engine.dtype, engine.devices)
    logger.info(
        "%d requests at once, of at most %d tokens each (--slots, --max-model-len, --kv-memory)",
        engine.slots,
        engine.max_model_len,
    )
    return engine


def _loaded(config: ServeConfig, load: Callable[..., T], **limits: Any) -> T:
    """What `load` makes of the checkpoint, told what `dgemma_jax.load` is told: the same in every process of a group.

    Raises ValueError or OSError that says what is wrong.
    """
    from serve.dtype import choose_dtype

    folder = _prepare(config)
    model = {
        "dtype": choose_dtype(config.dtype, folder),
        "lora": config.lora,
        "mesh": config.mesh,
        "backend": config.moe_backend,
        "quantize": config.quantize,
    }
    try:
        return load(folder, **model, **limits)
    except (RuntimeError, MemoryError) as error:  # JAX: no such backend, or no room on the device
        logger.debug("loading failed", exc_info=True)
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"cannot load {config.checkpoint} as {config.dtype}: {why}") from None


def _prepare(config: ServeConfig) -> Path:
    """The checkpoint's folder, downloaded if need be. Raises ValueError."""
    from dgemma_jax.checkpoint.hub import resolve_checkpoint
    from serve.checkpoint_engine import keep_compiled

    try:
        folder = resolve_checkpoint(config.checkpoint)
    except ValueError as error:
        raise ValueError(f"--checkpoint {error}") from None

    logger.info("loading %s as %s", config.checkpoint, config.dtype)
    try:
        keep_compiled(config.compilation_cache)
    except OSError as error:
        logger.warning("--compilation-cache %s cannot be used, going on without: %s", config.compilation_cache, error)
    return folder


async def _either(*events: asyncio.Event) -> None:
    """Waits for the first of several events."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _stop_signal() -> asyncio.Event:
    """An event that the first SIGTERM or Ctrl-C sets; the second one acts as usual."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)

    def on_signal() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt instead
            loop.add_signal_handler(number, on_signal)
    return stop


def leave(status: int) -> NoReturn:
    """Ends the process, whatever its threads are doing."""
    logging.shutdown()
    sys.stderr.flush()
    if status or threading.active_count() > 1:
        # A thread inside XLA cannot be interrupted, and aborts the process when the interpreter ends around it;
        # a prompt under way would be waited for, and so would the rest of a group by one that fails. None has anything
        # to lose: every client has its answer.
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main())
