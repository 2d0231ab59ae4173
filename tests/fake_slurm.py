"""The environment that SLURM gives the tasks of a step, here on one host."""

from __future__ import annotations

import contextlib
import os
import socket

_FIRST_PORT = 65536 - 4096  # JAX derives the coordinator's port from the job's number


def free_job() -> int:
    """The number of a job whose port is free."""
    for job in range(os.getpid() % 2048, 4096):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", _FIRST_PORT + job))
            return job
    raise AssertionError("no port is free")


def environment(job: int, tasks: int, task: int) -> dict[str, str]:
    """For one of the tasks."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
    }
