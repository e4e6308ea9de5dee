"""`neuralign extract`: compute and store features, or say what that would take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Device, Json, Layers, ModelArg, Root, Seed, Weights

StimuliArg = Annotated[
    str,
    typer.Argument(
        metavar="STIMULI",
        help="Dataset (see `neuralign datasets`), .h5 file of a Recording, folder or zip of images.",
    ),
]
Reduce = Annotated[
    str | None,
    typer.Option(help="Cells along each side of a grid; mean, max, cls, mean-patch, last; sketch:K, sparse:K, time:K."),
]


def extract(
    model: ModelArg,
    stimuli: StimuliArg,
    root: Root = None,
    weights: Weights = None,
    layers: Layers = None,
    reduce: Reduce = None,
    dtype: Annotated[str, typer.Option(help="float32, or float16 for half the room.")] = "float32",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; auto is bfloat16 on a GPU that has it.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Stimuli per forward pass.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode images; default by the device.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the model first.")] = False,
    on_error: Annotated[str, typer.Option(help="raise, or skip stimuli that cannot be read.")] = "raise",
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Share I (from 0) of N jobs that fill one store together.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the store; default $NEURALIGN_CACHE or ~/.cache/neuralign.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take; compute nothing.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compute features and store them, for whatever needs them later.

    A run that is killed goes on where it stopped when it is started again.
    """
    from .encoders.features.extract import extract as compute
    from .encoders.features.extract import plan as planned
    from .tables import aligned

    options: dict[str, Any] = {
        "layers": layers,
        "reduce": int(reduce) if reduce is not None and reduce.isdecimal() else reduce,
        "batch_size": batch_size,
        "cache": cache,
        "weights": weights,
        "seed": seed,
        "dtype": dtype,
        "precision": precision,
        "workers": workers,
        "compile": compiled,
        "on_error": on_error,
        "shard": _shard(shard),
    }
    names = [name.strip() for name in model.split(",") if name.strip()]
    shown = _stimuli(stimuli, root)
    records: list[dict[str, Any]] = []
    for name in names:
        if dry_run:
            plan = planned(name, shown, device="auto" if device == "cuda:all" else device, **options)
            if not as_json:
                typer.echo(plan)
            records += json.loads(plan.layers.assign(model=plan.model).to_json(orient="records"))
            continue
        features = compute(name, shown, device=device, **options)
        for layer, array in features.items():
            shape = " x ".join(map(str, array.shape))
            records.append({"model": features.model, "layer": layer, "shape": shape, "dtype": array.dtype.name,
                            "key": features.keys_.get(layer, "")})  # fmt: skip
    if as_json:
        typer.echo(json.dumps(records, indent=1, default=list))
    elif not dry_run:
        import pandas as pd

        typer.echo(aligned(pd.DataFrame(records).assign(key=[record["key"][:12] for record in records])))


def _stimuli(source: str, root: Path | None) -> Any:
    from . import datasets

    path = Path(source)
    if path.is_dir():
        return datasets.StimulusSet.from_folder(path)
    if path.suffix.lower() == ".zip":
        return datasets.StimulusSet.from_zip(path)
    brain = datasets.Recording.load(path) if path.suffix == ".h5" else datasets.load(source, root)
    if brain.stimuli is None:
        raise ValueError(f"{source} brings no stimuli, so that no model can be shown them")
    return brain.stimuli


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(f"--shard {text!r}: expected I/N, for instance 0/4 to 3/4 for four jobs")
    return int(i), int(n)
