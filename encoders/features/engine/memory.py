"""How much memory there is, how many rows are held at a time, and what to do when a pass does not fit."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ..disk import readable

_BUFFERS = {"cpu": 2**25, "cuda": 2**28}  # bytes of one block of all layers; two are held, one being written
_MOST_ROWS = 8192
# Of a group of processes: limit and use, in the second and in the first version of control groups.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def available() -> int | None:
    """Bytes that this process may still take: of the machine, or of the group of processes it is confined to.

    Returns
    -------
    int or None
        None where the system does not say.
    """
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    for limit, use, stat in _GROUPS:
        try:
            cached = [int(line.split()[1]) for line in Path(stat).read_text().splitlines() if "inactive_file" in line]
            found.append(int(Path(limit).read_text()) - int(Path(use).read_text()) + max(cached, default=0))
        except (OSError, ValueError, IndexError):  # no such group, or "max": no limit
            continue
    return max(0, min(found)) if found else None


def block_rows(row_bytes: int, rows: int, batch_size: int, device: torch.device, shards: int = 1) -> int:
    """How many rows are computed, held and committed together.

    Parameters
    ----------
    row_bytes : int
        Of one row of all layers that are computed together.
    rows : int
        Of all stimuli.
    batch_size : int
        A block holds whole batches as far as they fit.
    device : torch.device
        One that is fast fills larger blocks.
    shards : int
        Between how many runs the blocks are dealt out.

    Returns
    -------
    int
        At least one; the environment variable ``NEURALIGN_BLOCK_ROWS`` overrides it.
    """
    if given := os.environ.get("NEURALIGN_BLOCK_ROWS"):
        if not given.isdecimal() or int(given) < 1:
            raise ValueError(f"NEURALIGN_BLOCK_ROWS={given!r}; expected a whole number, at least 1")
        return int(given)
    budget = _BUFFERS.get(device.type, _BUFFERS["cuda"])
    free = available()
    if free is not None:
        budget = min(budget, free // 20)
    most = min(_MOST_ROWS, budget // max(1, row_bytes), -(-rows // (4 * shards)) if shards > 1 else _MOST_ROWS)
    return max(most // batch_size * batch_size, min(most, batch_size), 1)


def refuse_what_does_not_fit(sizes: Mapping[str, int], mend: str) -> None:
    """Refuse features that are to stay in memory and would not.

    Parameters
    ----------
    sizes : mapping of str to int
        Bytes of each layer.
    mend : str
        What would need less, for the message.

    Raises
    ------
    ValueError
        If they need more than is available.
    """
    free, size = available(), sum(sizes.values())
    if free is not None and size > free:
        raise ValueError(f"features need {readable(size)} of memory, and {readable(free)} are available; {mend}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a pass did not fit into the memory of its device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("not enough memory", "can't allocate memory", "out of memory")
    )


def release(device: torch.device) -> None:
    """Give memory that no tensor uses any more back to the device."""
    gc.collect()  # frames of the failed pass that refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
