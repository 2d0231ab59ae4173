"""Several processes as one machine: joining them, and words between the first and the others.

The processes meet through `jax.distributed`. Its key-value store carries the words: waiting for one costs no device
time, and a process that waits long is no error, as it would be within a collective. Every process keeps beating; the
first one notices who stops.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

BEAT_SECONDS = 1.0
LOST_SECONDS = 15.0
_PREFIX = "dgemma"
_WAIT_MS = 1000
_JOIN_MS = 60_000


class LostProcessError(RuntimeError):
    """A process of the group has failed or is gone. The group cannot go on without it."""


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Makes this process one of a group; before JAX is used for anything else. Without a coordinator it stays alone.

    Args:
        coordinator: host:port that process 0 listens on and all reach; "auto" as the cluster's environment says
            (SLURM, Kubernetes, TPU, MPI, as JAX knows them), which may also give the other two.
        num_processes, process_id: None as the environment says.

    Raises:
        ValueError: arguments that do not make a group, or an environment that does not say.
        RuntimeError: the others did not come within five minutes.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ValueError('num_processes and process_id need a coordinator, as host:port or "auto"')
        return
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise ValueError(f"process_id must be 0 to {num_processes - 1}, found {process_id}")
    if coordinator != "auto" and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f'coordinator must be host:port or "auto", found {coordinator!r}')
    # On CPUs programs that do not wait for each other would run at once, and their collectives meet those of others.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    address = None if coordinator == "auto" else coordinator
    is_said = None not in (address, num_processes, process_id)
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            cluster_detection_method="deactivate" if is_said else None,
            # The longest a process may be dead before JAX itself ends the others; the first one notices sooner, below.
            heartbeat_timeout_seconds=int(4 * LOST_SECONDS),
        )
    except ValueError as error:
        raise ValueError(
            "the environment is not that of a cluster that JAX knows (SLURM, TPU, Open MPI, or Kubernetes with the "
            f"package `kubernetes`): give the coordinator as host:port, num_processes and process_id ({error})"
        ) from None
    if not is_said:
        _use_devices_of_host()


def _use_devices_of_host() -> None:
    """All devices for a process that is alone on its host, as they are for one that was told of its group.

    Of a cluster JAX gives each process the one device that has the process's number on its host.
    """
    store, group = _store(), _group()
    store.key_value_set(f"{_PREFIX}/host/{group.process_id}", socket.gethostname())
    hosts = [store.blocking_key_value_get(f"{_PREFIX}/host/{i}", _JOIN_MS) for i in range(group.num_processes)]
    if hosts.count(socket.gethostname()) == 1 and not os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, os.environ.get(name.upper(), "all"))


def give_up(why: str) -> None:
    """Tells process 0 that this one cannot take part, or no longer, so that it waits for no beats. On any other."""
    with contextlib.suppress(Exception):  # nobody may be there to hear it
        _store().key_value_set(f"{_PREFIX}/beat/{jax.process_index()}", f"failed {why}", allow_overwrite=True)


def lost() -> str | None:
    """Which process of the group is gone, and how that showed; None while all are there. Known on process 0 alone."""
    return None if _words is None else _words.lost


class Words:
    """From process 0 to all others: words in order, and beats the other way. One a process."""

    def __init__(self) -> None:
        global _words
        _words = self
        self._store = _store()
        self._index, self._count = jax.process_index(), jax.process_count()
        self._next = 0  # number of the next word
        self._kept = 0  # the first word that is still in the store
        self.lost: str | None = None
        self._over = threading.Event()
        work = self._watch if self._index == 0 else self._beat
        threading.Thread(target=work, name="group", daemon=True).start()

    def say(self, word: bytes) -> None:
        """Tells all others. On process 0."""
        self._store.key_value_set_bytes(f"{_PREFIX}/word/{self._next}", word)
        self._next += 1

    def hear(self) -> bytes:
        """The next word; waits for it. Where process 0 is gone, JAX ends this process or this raises."""
        while True:
            try:
                word = self._store.blocking_key_value_get_bytes(f"{_PREFIX}/word/{self._next}", _WAIT_MS)
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                raise LostProcessError(f"process 0 cannot be reached: {error}") from error
            self._next += 1
            return word

    def fail(self, why: str) -> None:
        """As `give_up`, of a process that has begun."""
        give_up(why)
        self._over.set()

    def require_all(self) -> None:
        """Raises LostProcessError if a process is gone. On process 0."""
        if self.lost is not None:
            raise LostProcessError(self.lost)

    def run(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, which may wait for all processes: given up where one of them is gone.

        Raises:
            LostProcessError: a process was lost before or while it worked, or its device failed; a thread may be left
                inside of it.
        """
        self.require_all()
        outcome: list[Any] = []
        done = threading.Event()

        def carry_out() -> None:
            try:
                outcome.extend((True, work()))
            except BaseException as error:
                outcome.extend((False, error))
            done.set()

        threading.Thread(target=carry_out, name="group-work", daemon=True).start()
        while not done.wait(BEAT_SECONDS):
            self.require_all()
        if not outcome[0]:
            # Requests were checked before: this is a broken connection, or a process out of memory. (JAX raises some of
            # them as ValueError.) The others may have gone another way.
            raise LostProcessError(f"the processes are no longer in step: {outcome[1]}") from outcome[1]
        return outcome[1]

    def close(self) -> None:
        """Ends beats or the watch over them."""
        self._over.set()

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(BEAT_SECONDS if count else 0):
            count += 1
            with contextlib.suppress(Exception):  # one that is missed does no harm; many are noticed
                self._store.key_value_set(
                    f"{_PREFIX}/beat/{self._index}", f"{count} {self._next}", allow_overwrite=True
                )

    def _watch(self) -> None:
        seen: dict[int, tuple[str, float]] = {i: ("", time.monotonic()) for i in range(1, self._count)}
        while not self._over.wait(BEAT_SECONDS / 2) and self.lost is None:
            for index, (before, since) in seen.items():
                beat = self._last_beat(index)
                if beat.startswith("failed"):
                    self.lost = f"process {index} of {self._count} {beat}"
                elif beat != before:
                    seen[index] = (beat, time.monotonic())
                elif before and time.monotonic() - since > LOST_SECONDS:
                    self.lost = f"process {index} of {self._count} has not been heard of for {LOST_SECONDS:.0f} s"
            self._forget([beat for beat, _ in seen.values()])

    def _last_beat(self, index: int) -> str:
        try:
            return str(self._store.key_value_try_get(f"{_PREFIX}/beat/{index}"))
        except Exception:  # none yet
            return ""

    def _forget(self, beats: list[str]) -> None:
        """Words that all have heard leave the store."""
        heard = min((int(beat.split()[1]) if beat and beat[0].isdecimal() else 0 for beat in beats), default=0)
        for number in range(self._kept, heard):
            with contextlib.suppress(Exception):
                self._store.key_value_delete(f"{_PREFIX}/word/{number}")
        self._kept = max(self._kept, heard)


_words: Words | None = None


def _group() -> Any:
    """What JAX knows of the group without starting a device, which has no public name."""
    from jax._src import distributed

    return distributed.global_state


def _store() -> Any:
    """The key-value store of the group. JAX has no public name for it; Orbax and others take it from here too."""
    client = _group().client
    if client is None:
        raise RuntimeError("this process is not in a group: `join` one first")
    return client
