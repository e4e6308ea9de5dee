"""What a run would take, before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ..disk import readable


@dataclass(frozen=True, eq=False)
class Plan:
    """What `extract` would do with the same arguments; printed, a few lines.

    Attributes
    ----------
    model : str
    n_stimuli : int
    layers : pandas.DataFrame
        One row per layer: ``layer``; ``shape`` of one stimulus' features; ``bytes`` of all of them; ``state``: hit
        (stored), partial (some blocks are) or missing.
    bytes_on_disk : int
        That would be written, beside what is there already.
    bytes_in_memory : int
        Held while the model runs, beside the model and its pass: blocks that are being filled and written, or, with
        ``cache=False``, the features themselves.
    seconds : float or None
        From a pass over two stimuli, without reading them: an upper bound, because larger batches are faster. None
        where nothing is left to compute.
    where : str
        Folder of the store; empty for memory.
    """

    model: str
    n_stimuli: int
    layers: pd.DataFrame
    bytes_on_disk: int
    bytes_in_memory: int
    seconds: float | None
    where: str

    def __str__(self) -> str:
        table = self.layers.assign(
            shape=[" x ".join(map(str, shape)) for shape in self.layers["shape"]],
            bytes=[readable(size) for size in self.layers["bytes"]],
        )
        lines = table.to_string(index=False).splitlines()
        to_write = f"{readable(self.bytes_on_disk)} to write in {self.where}" if self.where else "kept in memory"
        last = f"{to_write}; {readable(self.bytes_in_memory)} of memory beside the model"
        if self.seconds is not None:
            last += f"; at most about {_duration(self.seconds)} of computing"
        return "\n".join([f"{self.model}: {self.n_stimuli} stimuli", *lines, last])


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
