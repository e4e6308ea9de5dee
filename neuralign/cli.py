"""The command line: every command is one or two calls of the functions that scripts use."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__

app = typer.Typer(
    name="neuralign",
    help="Score how well the layers of a model predict the responses of a brain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
datasets_app = typer.Typer(help="List datasets, show one, check its files.", invoke_without_command=True)
app.add_typer(datasets_app, name="datasets")

ModelArg = Annotated[str, typer.Argument(help="Model, or several separated by commas; see `neuralign models`.")]
DatasetArg = Annotated[str, typer.Argument(help="Dataset, see `neuralign datasets`, or an .h5 file of a Recording.")]
Root = Annotated[Path | None, typer.Option(help="Folder with the dataset; default below $NEURALIGN_DATA.")]
Weights = Annotated[Path | None, typer.Option(help="File or folder with the weights; default below $NEURALIGN_DATA.")]
Layers = Annotated[str | None, typer.Option(help="Layers or patterns separated by commas, or `all`.")]
Regions = Annotated[str | None, typer.Option(help="Regions separated by commas; default all.")]
Subject = Annotated[str | None, typer.Option(help="Subject.")]
Session = Annotated[str | None, typer.Option(help="Session.")]
Select = Annotated[list[str] | None, typer.Option(help="Any other selector of the dataset, as key=value.")]
Seed = Annotated[int, typer.Option(help="Seed of folds, resampling and untrained weights.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Pool = Annotated[int, typer.Option(help="Average maps into a grid of this many cells a side; 0 keeps every place.")]
Controls = Annotated[bool, typer.Option(help="Also score pixels and an untrained copy of each model.")]
Bootstrap = Annotated[int, typer.Option(help="Draws of stimuli behind the interval.")]
Permutations = Annotated[int, typer.Option(help="Shuffles of stimuli behind p.")]
Json = Annotated[bool, typer.Option("--json", help="Print records as JSON instead of a table.")]
Out = Annotated[Path | None, typer.Option(help="Also write .html (report), .h5 (all), .csv or .json (table).")]


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error; may stand anywhere.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("report.html"),
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score five models against a simulated subject whose computations are known, and write a report."""
    from .demo import run, summary

    encoding, geometry = run(out, seed=seed, device=device)
    if as_json:
        _print_json(encoding, geometry)
        return
    typer.echo("Share of the noise ceiling that each model reaches in each region (normalised r; * best)\n")
    typer.echo(summary(encoding))
    typer.echo(f"\nReport: {out}")


@datasets_app.callback()
def datasets_list(context: typer.Context, as_json: Json = False) -> None:
    """List datasets."""
    if context.invoked_subcommand is None:
        from . import datasets

        _print_table(datasets.list(), as_json)


@datasets_app.command("info")
def datasets_info(name: str) -> None:
    """Show a dataset's card: citation, licence, where to get it."""
    from dataclasses import fields

    from . import datasets

    card = datasets.info(name)
    for field in fields(card):
        value = getattr(card, field.name)
        if isinstance(value, dict):
            value = "; ".join(f"{key}: {text}" for key, text in value.items())
        if field.name == "files":
            value = ", ".join(file.path for file in value)
        elif isinstance(value, tuple):
            value = ", ".join(map(str, value))
        if value not in ("", None):
            typer.echo(f"{field.name:12} {value}")


@datasets_app.command("check")
def datasets_check(name: str, root: Root = None, as_json: Json = False) -> None:
    """Verify the files of a dataset; exit code 1 when something is wrong."""
    from . import datasets

    table = datasets.check(name, root)
    _print_table(table, as_json)
    if not (table["status"] == "ok").all():
        raise typer.Exit(1)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Show this model's card and layers.")] = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """List models, or show the layers of one."""
    import pandas as pd

    from . import encoders

    if name is None:
        cards = encoders.model_cards()
        columns = ["name", "title", "modality", "layers", "licence"]
        rows = [[c.name, c.title, c.modality, ", ".join(c.layers), c.licence] for c in cards]
        _print_table(pd.DataFrame(rows, columns=columns), as_json)
        return
    from .demo import layer_table

    model = encoders.load_model(name, weights)
    if model.card is not None and not as_json:
        typer.echo(f"{model.card.title}\n{model.card.citation}\n")
    _print_table(layer_table(model), as_json)


@app.command()
def score(
    model: ModelArg,
    dataset: DatasetArg,
    root: Root = None,
    weights: Weights = None,
    layers: Layers = None,
    regions: Regions = None,
    subject: Subject = None,
    session: Session = None,
    select: Select = None,
    cv: Annotated[int, typer.Option(help="Outer folds.")] = 5,
    pool: Pool = 6,
    controls: Controls = True,
    bootstrap: Bootstrap = 1000,
    permutations: Permutations = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Predict responses from a model's layers by cross-validated ridge regression."""
    from . import align
    from .encoders import RidgeCV

    brain = _brain(dataset, root, regions, subject, session, select)
    features = _features(model, brain.stimuli, layers, weights, pool, controls, seed, device)
    encoder = RidgeCV(score="r2", standardise=True, device=device)
    table = align.score(features, brain, encoder, cv=cv, bootstrap=bootstrap, permutations=permutations, seed=seed)
    _finish(table, as_json, out)


@app.command()
def rsa(
    model: ModelArg,
    dataset: DatasetArg,
    root: Root = None,
    weights: Weights = None,
    layers: Layers = None,
    regions: Regions = None,
    subject: Subject = None,
    session: Session = None,
    select: Select = None,
    rdm: Annotated[str, typer.Option(help="Dissimilarity of two stimuli.")] = "correlation",
    compare: Annotated[str, typer.Option(help="Similarity of two RDMs.")] = "rho-a",
    subjects: Annotated[str, typer.Option(help="Compare with `each` subject's RDM or with their `average`.")] = "each",
    pool: Pool = 0,
    controls: Controls = True,
    bootstrap: Bootstrap = 1000,
    permutations: Permutations = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Compare the geometry of a model's layers with that of regions."""
    from . import align

    brain = _brain(dataset, root, regions, subject, session, select)
    features = _features(model, brain.stimuli, layers, weights, pool, controls, seed, device)
    table = align.rsa(
        features,
        brain,
        rdm=rdm,
        compare=compare,
        bootstrap=bootstrap,
        permutations=permutations,
        subjects=subjects,
        seed=seed,
    )
    _finish(table, as_json, out)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Result files (.h5 of --out; .csv or .json show less).")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Make one HTML page of result files."""
    from . import align

    typer.echo(align.report([align.load_results(path) for path in results], out))


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _brain(
    dataset: str,
    root: Path | None,
    regions: str | None,
    subject: str | None,
    session: str | None,
    select: list[str] | None,
) -> Any:
    """The data, with what its loader cannot select selected afterwards."""
    from . import datasets

    chosen: dict[str, Any] = {"subject": subject, "session": session, "region": _split(regions)}
    for item in select or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--select {item!r}: expected key=value")
        chosen[key] = value
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if dataset.endswith(".h5"):
        brain, own = datasets.Recording.load(dataset), set()
    else:
        own = set(datasets.info(dataset).selection) & set(chosen)
        brain = datasets.load(dataset, root, **{key: chosen[key] for key in own})
    rest = {key: value for key, value in chosen.items() if key not in own}
    return brain.select(**rest) if rest else brain


def _features(
    model: str,
    stimuli: Any,
    layers: str | None,
    weights: Path | None,
    pool: int,
    controls: bool,
    seed: int,
    device: str,
) -> list[Any]:
    from . import encoders
    from .encoders.features.registry import controls_of

    if stimuli is None:
        raise ValueError("the dataset brings no stimuli, so that no model can be shown them")
    names = _split(model) or []
    loaded = {name: encoders.load_model(name, weights, seed=seed) for name in names}
    if controls:
        loaded |= {name: encoders.load_model(name, seed=seed) for name in controls_of(names, stimuli.kind)}
    reduce = pool or None if stimuli.kind == "image" else None
    return [
        encoders.extract(
            built, stimuli, layers if name.removesuffix("-untrained") in names else None, reduce=reduce, device=device
        )
        for name, built in loaded.items()
    ]


def _finish(table: Any, as_json: bool, out: Path | None) -> None:
    from . import align
    from .demo import readable

    if out is not None:
        if out.suffix == ".html":
            align.report(table, out)
        else:
            align.save_results(table, out)
        logging.getLogger("neuralign").info("wrote %s", out)
    if as_json:
        _print_json(table)
    else:
        typer.echo(readable(table))


def _print_json(*tables: Any) -> None:
    records = [
        record for table in tables for record in json.loads(table.to_json(orient="records", double_precision=15))
    ]
    typer.echo(json.dumps(records, indent=1))


def _print_table(table: Any, as_json: bool) -> None:
    if as_json:
        _print_json(table)
    else:
        typer.echo(table.to_string(index=False, justify="left"))


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one clear line on stderr and exit code 1 when something goes wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("neuralign").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app(args=[a for a in arguments if a != "--debug"], prog_name="neuralign")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(1)
