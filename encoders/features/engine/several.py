"""Several GPUs: one process each, which share the blocks of one store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from .loader import unnamed_script


def all_devices() -> list[str]:
    """Every CUDA device.

    Raises
    ------
    ValueError
        If there is none.
    """
    n = torch.cuda.device_count()
    if not n:
        raise ValueError("device='cuda:all': torch finds no CUDA device here; take 'auto' or 'cpu'")
    return [f"cuda:{i}" for i in range(n)]


def on_every(devices: Sequence[str], extract: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Run an extraction on every device, each on its share of the blocks, and wait for all of them.

    Parameters
    ----------
    devices : sequence of str
    extract : callable
        Called with ``device`` and ``shard`` besides the arguments.
    arguments : mapping
        They travel to other processes.
    """
    context = torch.multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(len(devices), context) as pool:
        jobs = []
        for i, device in enumerate(devices):
            with unnamed_script():
                jobs.append(pool.submit(_share, extract, {**arguments, "device": device, "shard": (i, len(devices))}))
        for job in jobs:
            job.result()


def _share(extract: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    extract(**arguments)  # features stay in the store: they would be copied on their way
