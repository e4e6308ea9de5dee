"""The command line: every command is one or two calls of the functions that scripts use."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .cache_cli import app as cache_app
from .extract_cli import extract
from .options import (
    WHOLE_KERNELS,
    Bootstrap,
    Comparison,
    Controls,
    DatasetArg,
    Device,
    Dissimilarity,
    Draws,
    Encoder,
    Folds,
    Json,
    Kernel,
    Layers,
    ModelArg,
    NameArg,
    Noise,
    Out,
    Over,
    Page,
    Permutations,
    Pool,
    Regions,
    Root,
    Seed,
    Select,
    Session,
    Step,
    Subject,
    Subjects,
    Thresholds,
    Transform,
    Weights,
    Window,
)

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
app.add_typer(cache_app, name="cache")


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Page = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score five models against a simulated subject; write a report.

    The computations of the subject's regions are known, so that the table can be checked at a glance.
    """
    from .demo import run
    from .tables import summary

    [page] = out or []  # which the option fills
    encoding, geometry = run(page, seed=seed, device=device)
    if as_json:
        _print_json(encoding, geometry)
        return
    typer.echo("Share of the noise ceiling that each model reaches in each region (normalised r; * best)\n")
    typer.echo(summary(encoding))
    typer.echo(f"\nReport: {page}")


@datasets_app.callback()
def datasets_list(context: typer.Context, as_json: Json = False) -> None:
    """List datasets."""
    if context.invoked_subcommand is None:
        from . import datasets

        _print_table(datasets.list(), as_json, ["name", "found", "modality", "title"])


@datasets_app.command("info")
def datasets_info(name: NameArg) -> None:
    """Show a dataset's card: citation, licence, where to get it."""
    from . import datasets

    card = datasets.info(name)
    _print_card(
        {
            **{key: getattr(card, key) for key in ("name", "title", "citation", "licence", "modality", "source")},
            "files": [file.path for file in card.files],
            "folders": card.folders,
            "selection": [f"{key}: {meaning}" for key, meaning in card.selection.items()],
            "notes": card.notes,
        }
    )


@datasets_app.command("check")
def datasets_check(name: NameArg, root: Root = None, as_json: Json = False) -> None:
    """Verify the files of a dataset; exit code 1 when something is wrong."""
    from . import datasets

    table = datasets.check(name, root)
    if table.empty and not as_json:
        typer.echo(f"{name} needs no files")
    else:
        _print_table(table, as_json)
    intact = table["status"].str.startswith(("as expected", "there;"))
    if not intact.all():
        typer.echo(f"{(~intact).sum()} of {len(table)} files are absent or damaged", err=True)
        raise typer.Exit(1)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this model's card and layers.")] = None,
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
        _print_table(pd.DataFrame(rows, columns=columns), as_json, ["name", "modality", "layers", "title"])
        return
    from .tables import layer_table

    model = encoders.load_model(name, weights)
    if model.card is not None and not as_json:
        keys = ("title", "citation", "licence", "source", "size", "preprocessing")
        shown = {key: value for key in keys if (value := getattr(model.card, key))} | {"norm": model.norm}
        if model.name != model.card.name:
            shown |= {"note": f"{model.name} has the architecture of this model and random weights"}
        _print_card({"name": model.name, **shown})
        typer.echo()
    _print_table(layer_table(model), as_json)


app.command()(extract)


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
    encoder: Encoder = "ridge",
    kernel: Kernel = None,
    cv: Annotated[int, typer.Option(min=2, help="Outer folds.")] = 5,
    pool: Pool = 6,
    controls: Controls = True,
    bootstrap: Bootstrap = 1000,
    permutations: Permutations = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Predict responses from a model's layers by regression.

    Scores are of stimuli that the fit has not seen, in outer folds; penalties and numbers of components are chosen
    within the other folds.
    """
    from . import align
    from .regressors import encoder_named, refuse_without_maps

    brain = _brain(dataset, root, regions, subject, session, select)
    refuse_without_maps(encoder, brain.stimuli, dataset)
    features = _features(model, brain.stimuli, layers, weights, pool, controls, seed, device)
    scored = align.score_bands if encoder == "banded" else align.score
    regressor = encoder_named(encoder, kernel, seed, device)
    table = scored(features, brain, regressor, cv=cv, bootstrap=bootstrap, permutations=permutations, seed=seed)
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
    rdm: Dissimilarity = None,
    compare: Comparison = "rho-a",
    subjects: Subjects = "each",
    topology: Thresholds = None,
    transform: Transform = None,
    over: Over = "stimuli",
    noise: Noise = None,
    folds: Folds = None,
    window: Window = None,
    step: Step = None,
    pool: Pool = 0,
    controls: Controls = True,
    bootstrap: Draws = 1000,
    permutations: Permutations = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Compare the geometry of a model's layers with that of regions.

    Where the dataset brings RDMs, a model may also be `rdms:SOURCE`, another source of the same dataset.
    """
    from . import align, datasets

    if compare in WHOLE_KERNELS and bootstrap and over in ("stimuli", "both"):
        raise ValueError(
            f"--compare {compare} with --bootstrap {bootstrap} --over {over}: it compares whole kernels, of which "
            "stimuli cannot be drawn twice; add --bootstrap 0 for no interval, or --over subjects to draw subjects"
        )
    thresholds = _topology(topology, transform)
    brain = _brain(dataset, root, regions, subject, session, select)
    names = _split(model) or []
    given = [name.removeprefix("rdms:") for name in names if name.startswith("rdms:")]
    shown = [name for name in names if not name.startswith("rdms:")]
    if rdm is not None and not shown and isinstance(brain, datasets.RDMs):
        raise ValueError(
            f"--rdm {rdm}: models and brain are RDMs that are made already, so it has no use; leave it out"
        )
    features = [datasets.load(dataset, root, source=source) for source in given]
    if shown:
        features += _features(",".join(shown), brain.stimuli, layers, weights, pool, controls, seed, device)
    table = align.rsa(
        features,
        brain,
        rdm="correlation" if rdm is None else rdm,
        compare=compare,
        bootstrap=bootstrap,
        permutations=permutations,
        subjects=subjects,
        seed=seed,
        topology=thresholds,
        over=over,
        noise=noise,
        folds=folds,
        window=window,
        step=step,
    )
    _finish(table, as_json, out)


@app.command()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT", help="Result files (.h5 of --out; .csv or .json show less)."),
    ],
    out: Page = None,
) -> None:
    """Make one HTML page of result files."""
    from . import align

    [page] = out or []  # which the option fills
    typer.echo(align.report([align.load_results(path) for path in results], page))


def _topology(thresholds: str | None, transform: str | None) -> dict[str, Any] | None:
    """ "L,U" as numbers, with the transform they belong to."""
    if thresholds is None:
        if transform is not None:
            raise ValueError(f"--transform {transform} goes with --topology L,U, e.g. --topology 0.2,0.8")
        return None
    try:
        lower, upper = (float(part) for part in thresholds.split(","))
    except ValueError:
        raise ValueError(f"--topology {thresholds!r}: expected L,U, two numbers, e.g. 0.2,0.8") from None
    return {"lower": lower, "upper": upper, "transform": transform or "rgtm"}


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
    from .datasets.errors import unknown

    chosen: dict[str, Any] = {"subject": subject, "session": session, "region": _split(regions)}
    for item in select or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--select {item!r}: expected KEY=VALUE")
        chosen[key] = value
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if dataset.endswith(".h5"):
        offered: Mapping[str, str] = {}
        brain = datasets.Recording.load(dataset)
    else:
        offered = datasets.info(dataset).selection
        brain = datasets.load(dataset, root, **{key: chosen[key] for key in offered if key in chosen})
    rest = {key: value for key, value in chosen.items() if key not in offered}
    columns = [column for axis in ("presentations", "units", "events", "table") for column in getattr(brain, axis, ())]
    for key in rest:
        if key not in columns:
            raise ValueError(unknown("selector", key, dict.fromkeys([*offered, *columns])))
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
    from .encoders.features.registry import UNTRAINED, controls_of, reads_weights

    if stimuli is None:
        raise ValueError("the dataset brings no stimuli, so that no model can be shown them")
    names = _split(model)
    if not names:
        raise ValueError(f"model={model!r} names no model; see `neuralign models`")
    readers = [name for name in names if reads_weights(name)] or names  # beside them, controls may be listed
    loaded = {name: encoders.load_model(name, weights if name in readers else None, seed=seed) for name in names}
    if controls:
        loaded |= {name: encoders.load_model(name, seed=seed) for name in controls_of(names, stimuli.kind)}
    reduce = pool or None if stimuli.kind == "image" else None
    asked = {*names, *(name + UNTRAINED for name in names)}  # pixels as a control have layers of their own
    return [
        encoders.extract(built, stimuli, layers if name in asked else None, reduce=reduce, device=device)
        for name, built in loaded.items()
    ]


def _finish(table: Any, as_json: bool, outs: Sequence[Path] | None) -> None:
    from . import align
    from .tables import readable

    for out in outs or []:
        if out.suffix.lower() == ".html":
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


def _print_table(table: Any, as_json: bool, shown: Sequence[str] | None = None) -> None:
    """Everything as JSON; for eyes the columns `shown`, or all."""
    from .tables import aligned

    if as_json:
        _print_json(table)
    else:
        typer.echo(aligned(table if shown is None else table[list(shown)]))


def _print_card(card: Mapping[str, str | Sequence[str]]) -> None:
    """One field a line, the items of a list below each other; empty fields are left out."""
    width = max(map(len, card))
    for field, value in card.items():
        items = [value] if isinstance(value, str) else value
        for label, item in zip([field, *[""] * len(items)], items, strict=False):
            if item:
                typer.echo(f"{label:{width}}  {item}")


@contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Log lines as they come; each warning once, however many folds raise it."""
    log = logging.getLogger("neuralign")
    level, handler = log.level, logging.StreamHandler(sys.stderr)
    said = set()

    def say(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in said:
            said.add(text)
            print(f"warning: {text}", file=sys.stderr)

    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = say
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one clear line on stderr and exit code 1 when something goes wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _messages_on_stderr():
            app(args=[a for a in arguments if a != "--debug"], prog_name="neuralign")
    except Exception as error:
        if "--debug" in arguments:
            raise
        reason = " ".join(str(error).split())
        if not isinstance(error, ValueError | OSError) or not reason:  # nobody wrote this for the user to read
            reason = f"{type(error).__name__}: {reason} (--debug shows where)"
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(1)
