"""Every test runs JAX strictly, on eight pretended CPU devices, and without network."""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models spend their time in the compiler: without its optimizations the tests take half as long.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import gc
import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
_MOST_MAPS = 20_000


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A connection that leaves the machine fails the test that tries it."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise AssertionError(f"tests do not use the network: connection to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        yield


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    """Every compiled program holds memory maps; a process has 65,530, and XLA crashes where there is none left."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
