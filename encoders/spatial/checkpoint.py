"""Training that goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...datasets.storage import atomic

if TYPE_CHECKING:
    from .training import Progress

FORMAT = "neuralign-training-1"


def fingerprint(arrays: Iterable[Any]) -> str:
    """Digest of arrays or tensors: shapes, dtypes and values."""
    digest = hashlib.sha256()
    for one in arrays:
        digest.update(f"{one.dtype} {tuple(one.shape)}".encode())
        if isinstance(one, Tensor):  # NumPy has no bfloat16
            one = one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(np.ascontiguousarray(one).tobytes())
    return digest.hexdigest()[:16]


class Checkpoint:
    """A file ``.safetensors`` with weights, best weights, optimiser and progress, in place once it is whole.

    Parameters
    ----------
    path : Path
    identity : mapping of str to str
        What the file must have been written with to be taken up again.

    Raises
    ------
    ValueError
        If the path does not end in .safetensors.
    FileNotFoundError
        If its folder is not there.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, str]):
        self.path, self.identity = checkpoint_path(path), {name: str(value) for name, value in identity.items()}

    def save(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, best: Mapping[str, Tensor]
    ) -> None:
        """Write the state after an epoch."""
        from safetensors.torch import save_file

        tensors = {f"module/{name}": value for name, value in module.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in best.items()}
        for i, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors["best_r"] = torch.from_numpy(np.array(progress.best_r, np.float64))
        # A file holds no two tensors in one memory.
        tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        state = {name: value for name, value in vars(progress).items() if name != "best_r"}
        table = {"format": FORMAT, "identity": json.dumps(self.identity), "progress": json.dumps(state)}
        with atomic(self.path) as draft:
            save_file(tensors, draft, table)

    def restore(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, best: dict[str, Tensor]
    ) -> bool:
        """Put everything back as it was when the file was written; whether there is a file.

        Raises
        ------
        ValueError
            If the file is no checkpoint, or one of another fit: the message says what differs.
        """
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return False
        try:
            with safe_open(self.path, "pt") as file:
                table = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint={str(self.path)!r} cannot be read ({error}); delete it to train anew"
            ) from error
        if table.get("format") != FORMAT:
            raise ValueError(
                f"checkpoint={str(self.path)!r} is no checkpoint of training of this version (format "
                f"{table.get('format')!r}, expected {FORMAT!r}); name another file"
            )
        self._require_same(json.loads(table["identity"]))
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = value
        module.load_state_dict(parts.get("module", {}))
        best.clear()
        best.update(parts.get("best", {}))
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in parts.get("optimiser", {}).items():
            i, _, rest = name.partition("/")
            states.setdefault(int(i), {})[rest] = value
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": states, "param_groups": groups})
        for name, value in json.loads(table["progress"]).items():
            setattr(progress, name, value)
        progress.best_r = tensors["best_r"].numpy()
        return True

    def _require_same(self, found: Mapping[str, str]) -> None:
        names = [*self.identity, *(name for name in found if name not in self.identity)]
        different = [name for name in names if found.get(name) != self.identity.get(name)]
        if different:
            listed = "; ".join(
                f"{name} is {self.identity.get(name)}, there it was {found.get(name)}" for name in different[:4]
            )
            raise ValueError(
                f"checkpoint={str(self.path)!r} is of another fit: {listed}; name another file, or delete this one"
            )


def checkpoint_path(path: Any) -> Path:
    """A path that a checkpoint can be written to.

    Raises
    ------
    ValueError
        If it is none, does not end in .safetensors, or its folder is not there.
    """
    if not isinstance(path, (str, Path)) or Path(path).suffix != ".safetensors":
        raise ValueError(f"checkpoint={path!r}: expected a path that ends in .safetensors, or None")
    if not Path(path).parent.is_dir():
        raise ValueError(f"checkpoint={str(path)!r}: no folder at {Path(path).parent}; create it first")
    return Path(path)
