"""Files of weights, read without running any code that they may hold."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

# What training scripts call the weights among the other things that they save.
_NESTED = ("state_dict", "model_state_dict", "model")
# What data-parallel and compiled modules put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint, without running any code that it may hold.

    Parameters
    ----------
    path : path
        ``.safetensors``, or what ``torch.save`` wrote of plain tensors: a state dict, or a dict that holds one as
        ``state_dict``, ``model_state_dict`` or ``model``. What data-parallel and compiled modules put before every
        name is taken off.

    Returns
    -------
    dict of str to Tensor
        On the CPU.

    Raises
    ------
    ValueError
        If the file holds anything but tensors, numbers and text (a pickled object or function, a TorchScript
        program), or is cut off, or has no state dict. Nothing of it has run by then.
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: there is no such file; expected a checkpoint")
    try:
        checkpoint = _read(path)
    except Exception:  # damage shows in many ways; torch's own message advises to run the code
        raise ValueError(
            f"weights={path} is not a checkpoint of plain tensors, or is cut off; it was not loaded, as it may hold "
            "code. Fetch it again from its source, or have it saved as safetensors."
        ) from None
    state = _state_in(checkpoint)
    if state is None:
        raise ValueError(
            f"weights={path} is not a checkpoint of plain tensors by name (a state dict, or one under "
            f"{', '.join(map(repr, _NESTED))}): it holds {_described(checkpoint)}. Save module.state_dict()."
        )
    while (
        wrapper := next((one for one in _WRAPPERS if all(name.startswith(one) for name in state)), None)
    ) is not None:
        state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return state


def load_into(module: nn.Module, state: dict[str, torch.Tensor], path: str | Path, name: str) -> None:
    """Put a state dict into a module that must have exactly these names and shapes.

    Raises
    ------
    ValueError
        If names or shapes differ.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights={path} do not fit {name}: {error}") from error


@contextmanager
def only_tensors() -> Iterator[None]:
    """Within it, ``torch.load`` reads plain tensors only, whatever the package that calls it asks for."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a TorchScript archive torch warns first and then refuses
        # The old format of torch is no archive and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _state_in(checkpoint: Any) -> dict[str, torch.Tensor] | None:
    if not isinstance(checkpoint, dict):
        return None
    for candidate in (checkpoint, *(checkpoint.get(name) for name in _NESTED)):
        if isinstance(candidate, dict) and candidate and all(map(_is_named_tensor, candidate.items())):
            return dict(candidate)
    return None


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)


def _described(checkpoint: Any) -> str:
    if isinstance(checkpoint, dict):
        return f"a dict with {', '.join(map(repr, list(checkpoint)[:5]))}" if checkpoint else "an empty dict"
    return f"a {type(checkpoint).__name__}"
