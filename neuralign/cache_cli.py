"""The commands that look after stored features: ``neuralign cache ls``, ``verify`` and ``rm``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(help="List stored features, compare them with their hashes, remove them.", no_args_is_help=True)

Cache = Annotated[
    Path | None, typer.Option("--cache", help="Folder of the store; default $NEURALIGN_CACHE, ~/.cache/neuralign.")
]
Patterns = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATTERN]...", help="Models, layers, MODEL/LAYER, beginnings of keys; `*` fits anything."),
]


@app.command("ls")
def ls(cache: Cache = None, as_json: Json = False) -> None:
    """List stored layers, their size and their state."""
    from .encoders.features.store import cache_root
    from .encoders.features.upkeep import entries

    root = cache_root(cache)
    table = entries(root)
    _print(table, as_json)
    if not as_json:
        typer.echo(_sum(table, f"in {root}"))


@app.command("verify")
def verify(patterns: Patterns = None, cache: Cache = None, as_json: Json = False) -> None:
    """Read stored layers and compare them with their hashes; ends with 1 where one is damaged."""
    import warnings

    from .encoders.features.store import cache_root
    from .encoders.features.upkeep import verify as compare

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "stored features of")  # the table says so
        table = compare(cache_root(cache), patterns or ())
    _print(table, as_json)
    damaged = int((table["state"] == "damaged").sum())
    if not as_json:
        again = "; the next run computes what is missing" if damaged else ""
        typer.echo(f"{len(table)} layers, {damaged} damaged{again}")
    if damaged:
        raise typer.Exit(1)


@app.command("rm")
def rm(
    patterns: Patterns = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is stored.")] = False,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="Only what was not written for so long.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and leave it.")] = False,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Remove stored layers."""
    from .encoders.features.store import cache_root
    from .encoders.features.upkeep import remove

    if not (patterns or everything or older_than is not None) or (patterns and everything):
        raise ValueError("say what to remove: patterns, or --older-than DAYS, or --all")
    table = remove(cache_root(cache), patterns or (), older_than, dry_run)
    _print(table, as_json)
    if not as_json:
        typer.echo(_sum(table, "would be removed" if dry_run else "removed"))


def _print(table: pd.DataFrame, as_json: bool) -> None:
    from .encoders.features.disk import readable
    from .tables import aligned

    if as_json:
        typer.echo(json.dumps(json.loads(table.to_json(orient="records", double_precision=15)), indent=1))
    elif len(table):
        shown = table.assign(key=table["key"].str[:12])
        if "bytes" in shown:
            shown["bytes"] = shown["bytes"].map(readable)
            shown["days"] = shown["days"].map("{:.1f}".format)
        typer.echo(aligned(shown))


def _sum(table: pd.DataFrame, what: str) -> str:
    from .encoders.features.disk import readable

    return f"{len(table)} layers, {readable(int(table['bytes'].sum()))} {what}"
