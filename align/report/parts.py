"""What a page is made of: sections with headings, figures as data URIs, and how numbers are worded."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from .style import STYLE


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page."""

    source: str  # data URI
    alt: str
    caption: str
    width: int  # pixels of the page


@dataclass(frozen=True)
class Section:
    """A heading with its pictures and, below it, parts with headings of their own."""

    title: str
    pictures: list[Picture] = field(default_factory=list)
    parts: list[Section] = field(default_factory=list)
    note: str = ""

    @property
    def anchor(self) -> str:
        """What a link calls it."""
        return "-".join(self.title.lower().split())


def picture(figure: Figure, alt: str, caption: str, kind: str = "svg") -> Picture:
    """The figure inside a data URI, as "svg", "png" or "palette" (png of 256 colours); the same bytes every time."""
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        if kind == "svg":
            nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
            figure.savefig(file, format="svg", metadata=nothing, dpi=200)
        else:
            figure.savefig(file, format="png", metadata={"Software": None}, dpi=170)
    if kind == "palette":
        image = Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        image.save(file := io.BytesIO(), format="png", optimize=True)
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    source = f"data:{mime};base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(source, alt, caption, round(figure.get_figwidth() * 100))


def ceiling_words(mean: pd.DataFrame) -> str:
    """How a figure of scores shows their ceiling; empty where none is known."""
    if mean["ceiling_low"].notna().any():
        return "Grey band: between the lower and the upper bound of the noise ceiling."
    if mean["ceiling"].notna().any():
        return "Dashed: the noise ceiling, the score of a perfect model given the noise in the responses."
    return ""
