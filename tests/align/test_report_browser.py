"""The page of a report in a real browser: it opens, and its table sorts."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from neuralign import align
from neuralign.align.score import Score, tabulate

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium binary on PATH")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--virtual-time-budget=5000",
]
# Scores whose order as text is not their order as numbers, and one that is missing.
SCORES = {"b2": 0.05, "b10": -0.2, "b1": np.nan, "a": 2.5, "c": 10.5}


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    scores = [
        Score("net", layer, "d", "s", "V4", "r", score, ceiling=0.8, n_units=10 * k, formula="encoding-1 x", seed=0)
        for k, (layer, score) in enumerate(SCORES.items())
    ]
    return align.report(tabulate(scores), tmp_path_factory.mktemp("page") / "report.html").read_text()


@pytest.fixture
def opened(tmp_path):
    """The document that the browser has made of a page once its scripts have run."""

    def dump(text):
        path = tmp_path / "page.html"
        path.write_text(text)
        command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return dump


def _pressed(html, *columns):
    """The page with a script at its end that presses the headers of these columns, and records script errors."""
    presses = "".join(
        f'[...document.querySelectorAll("thead button")].find((b) => b.textContent === "{column}").click();'
        for column in columns
    )
    watch = '<script>window.onerror = (message) => { document.title = "error: " + message; };</script>'
    return html.replace("<style>", watch + "<style>", 1).replace("</body>", f"<script>{presses}</script></body>")


def _layers(document):
    body = document[document.index("<tbody>") : document.index("</tbody>")]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row)[1] for row in body.split("<tr>")[1:]]


def test_page_opens_with_its_sections(html, opened):
    document = opened(_pressed(html))
    assert "<title>neuralign report</title>" in document  # no script error
    headings = re.findall(r"<h[12][^>]*>(.*?)</h[12]>", document)
    assert headings == ["neuralign report", "Encoding scores", "Table", "How it was made"]
    assert _layers(document) == list(SCORES)
    assert "aria-sort" not in document[document.index("<body>") : document.index("<script>", document.index("<body>"))]


@pytest.mark.parametrize(
    ("pressed", "order", "state"),
    [
        (["score"], ["c", "a", "b2", "b10", "b1"], "descending"),
        (["score", "score"], ["b10", "b2", "a", "c", "b1"], "ascending"),
        (["layer"], ["a", "b1", "b2", "b10", "c"], "ascending"),
        (["layer", "layer"], ["c", "b10", "b2", "b1", "a"], "descending"),
        (["layer", "n_units"], ["c", "a", "b1", "b10", "b2"], "descending"),
    ],
)
def test_a_press_on_a_header_sorts(html, opened, pressed, order, state):
    document = opened(_pressed(html, *pressed))
    assert _layers(document) == order
    header = document[document.index("<thead>") : document.index("</thead>")]
    assert re.findall(r'aria-sort="(\w+)"[^>]*><button type="button">(\w+)', header) == [(state, pressed[-1])]
    assert "<title>neuralign report</title>" in document


def test_pictures_load_and_nothing_comes_from_outside(html, opened):
    check = (
        "<script>window.onload = () => { document.title = "
        "[...document.images].every((i) => i.complete && i.naturalWidth > 100) ? 'drawn' : 'broken'; };</script>"
    )
    document = opened(html.replace("</body>", check + "</body>"))
    assert "<title>drawn</title>" in document
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", html)
