"""Options of the command line: what they are called, what they mean, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def can_write(out: Path) -> None:
    """Refuse a place for results before hours of computation go into them."""
    from .align.results import check_target

    check_target(out)


def _can_save(outs: list[Path] | None) -> list[Path] | None:
    for out in outs or []:
        from .align.results import SUFFIXES
        from .datasets.errors import unknown

        known = (".html", *SUFFIXES)
        if out.suffix.lower() not in known:
            raise ValueError(unknown("suffix of --out", out.suffix, known, f"Found {str(out)!r}."))
        can_write(out)
    return outs


def _one_page(outs: list[Path] | None) -> list[Path]:
    """A list, since of an option that is no list all but the last would be dropped in silence."""
    outs = outs or [Path("report.html")]
    if len(outs) > 1:
        raise ValueError(f"--out is given {len(outs)} times; expected one page to write.")
    can_write(outs[0])
    return outs


# Those that read maps of images, cell by cell; the others take a layer as one row of numbers.
TOKEN_ENCODERS = ("pooled", "pca", "pooling-grid", "factorized", "gaussian", "semantic", "attention")
ENCODERS = ("ridge", "banded", "kernel", "pls", *TOKEN_ENCODERS, "population", "in-context")
KERNELS = ("linear", "poly", "rbf")
NOISES = "full, diagonal, shrinkage-identity, shrinkage-diagonal"
# In help, without the import of what computes them.
DISSIMILARITIES = "sqeuclidean, euclidean, correlation, cosine, mahalanobis, crossnobis, poisson, poisson-cv"
COMPARISONS = "cosine, pearson, spearman, rho-a, tau-a, tau-b, cosine-whitened, pearson-whitened, bures, riemannian"
WHOLE_KERNELS = ("bures", "riemannian")  # comparisons that leave no place for a stimulus drawn twice
COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 16, 25)


def _known_encoder(name: str) -> str:
    from .datasets.errors import unknown

    if name not in ENCODERS:
        raise ValueError(unknown("encoder", name, ENCODERS))
    return name


def _known_kernel(context: typer.Context, name: str | None) -> str | None:
    from .datasets.errors import unknown

    if name is not None and name not in KERNELS:
        raise ValueError(unknown("kernel", name, KERNELS))
    if name is not None and context.params.get("encoder") != "kernel":
        raise ValueError(f"--kernel {name} goes with --encoder kernel; found --encoder {context.params.get('encoder')}")
    return name


ModelArg = Annotated[
    str, typer.Argument(metavar="MODEL", help="Model, or several separated by commas; see `neuralign models`.")
]
DatasetArg = Annotated[
    str, typer.Argument(metavar="DATASET", help="Dataset, see `neuralign datasets`, or an .h5 file of a Recording.")
]
NameArg = Annotated[str, typer.Argument(metavar="NAME", help="One of `neuralign datasets`.")]
Root = Annotated[Path | None, typer.Option(help="Folder with the dataset; default below $NEURALIGN_DATA.")]
Weights = Annotated[Path | None, typer.Option(help="File or folder with the weights; default below $NEURALIGN_DATA.")]
Layers = Annotated[str | None, typer.Option(help="Layers or patterns separated by commas, or `all`.")]
Regions = Annotated[str | None, typer.Option(help="Regions separated by commas; default all.")]
Subject = Annotated[str | None, typer.Option(help="Subject.")]
Session = Annotated[str | None, typer.Option(help="Session.")]
Select = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any other selector of the dataset; may be repeated.")
]
Encoder = Annotated[
    str,
    typer.Option(
        callback=_known_encoder,
        is_eager=True,  # --kernel asks for it, wherever it stands
        help="ridge, kernel or pls of each layer; banded: all layers of a model at once, and the part of each. Of "
        "maps: pooled or pca, ridge from their mean or principal components; pooling-grid, a Gaussian field for each "
        "unit; factorized, a mask for each unit; gaussian, a position for each unit; semantic, masks that move with "
        "the image; attention, regions that attend to places by what is there. population: ridge under a prior from "
        "all units; in-context: weights written by a network that is trained first, hours without a GPU.",
    ),
]
Kernel = Annotated[
    str | None, typer.Option(callback=_known_kernel, help="linear, poly or rbf, for --encoder kernel; default rbf.")
]
Seed = Annotated[int, typer.Option(help="Seed of folds, resampling and untrained weights.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Pool = Annotated[
    int, typer.Option(min=0, help="Average maps into a grid of this many cells a side; 0 keeps every place.")
]
Controls = Annotated[bool, typer.Option(help="Also score pixels and an untrained copy of each model.")]
Bootstrap = Annotated[int, typer.Option(min=0, help="Draws of stimuli behind the interval; 0 for none.")]
Draws = Annotated[
    int, typer.Option(min=0, help="Draws of what --over names, by default stimuli, behind the interval; 0 for none.")
]
Permutations = Annotated[int, typer.Option(min=0, help="Shuffles of stimuli behind p; 0 for none.")]
Json = Annotated[bool, typer.Option("--json", help="Print records as JSON instead of a table.")]
Out = Annotated[
    list[Path] | None,
    typer.Option(
        callback=_can_save, help="Also write .html (report), .h5 (all), .csv or .json (table); may be repeated."
    ),
]
Page = Annotated[list[Path] | None, typer.Option(callback=_one_page, help="The page to write; default report.html.")]
Dissimilarity = Annotated[
    str | None, typer.Option(help=f"Dissimilarity of two stimuli: {DISSIMILARITIES}; default correlation.")
]
Comparison = Annotated[str, typer.Option(help=f"Similarity of two RDMs: {COMPARISONS}.")]
Subjects = Annotated[str, typer.Option(help="Compare with `each` subject's RDM or with their `average`.")]
Thresholds = Annotated[
    str | None,
    typer.Option(metavar="L,U", help="Keep what lies between two thresholds of every RDM, quantiles such as 0.2,0.8."),
]
Transform = Annotated[
    str | None, typer.Option(help="rgtm (thresholds, the default) or rgdm (geodesics), with --topology.")
]
Over = Annotated[
    str, typer.Option(help="The interval is over `stimuli`, `subjects` or `both`; the last two compare models too.")
]
Noise = Annotated[
    str | None,
    typer.Option(help=f"Noise of the units, from their repeats: {NOISES}; for mahalanobis and crossnobis."),
]
Folds = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column of presentations with folds, for crossnobis, poisson-cv.")
]
Window = Annotated[
    float | None, typer.Option(min=0, help="RSA over time, in windows of this many seconds; 0: single samples.")
]
Step = Annotated[float | None, typer.Option(min=0, help="Seconds from window to window; default its width.")]
