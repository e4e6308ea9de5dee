"""Which folder may import which, and what an import must not bring along."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "datasets": {"datasets"},
    "encoders": {"datasets", "encoders"},
    "align": {"datasets", "encoders", "align"},
}
OURS = {"neuralign", *MAY_IMPORT}
HEAVY = [
    "dask", "jinja2", "matplotlib", "mne", "networkx", "nibabel", "nilearn", "numba", "pooch", "requests", "ripser",
    "rsatoolbox", "safetensors", "tokenizers", "torch", "transformers", "xarray",
]  # fmt: skip


def modules(folder):
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))


def dotted(path):
    """Name of the module in a file of the checkout."""
    parts = list(path.with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts if parts[0] == "neuralign" else ["neuralign", *parts])


def offences(path, source):
    """Imports, also those inside functions, that reach up a floor or that do not start with a dot."""
    name = dotted(path)
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in OURS]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [node.module] if node.module.split(".")[0] in OURS else []
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            reached = [base] if len(base) > 1 else [[*base, alias.name] for alias in node.names]
            found += [".".join(one) for one in reached if one[1] not in MAY_IMPORT[path.parts[0]]]
    return found


@pytest.mark.parametrize(
    ("path", "source", "caught"),
    [
        ("datasets/x.py", "from ..encoders import RidgeCV", True),
        ("datasets/fmri/x.py", "from ... import align", True),
        ("datasets/__init__.py", "def f():\n    from ..align.score import Score", True),
        ("encoders/linear/x.py", "from ...align import score", True),
        ("encoders/x.py", "from neuralign.datasets import load", True),
        ("encoders/x.py", "import datasets", True),
        ("align/x.py", "from ..cli import main", True),
        ("align/report/x.py", "from ... import __version__", True),
        ("align/report/x.py", "from ...datasets.errors import unknown\nfrom ..score import Score\nimport numpy", False),
        ("encoders/__init__.py", "from .linear.ridge import RidgeCV\nfrom ..datasets import load", False),
    ],
)
def test_the_check_itself_sees_what_it_should(path, source, caught):
    assert bool(offences(Path(path), source)) == caught


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_floors_import_downwards_and_relatively(floor):
    paths = modules(floor)
    assert paths
    found = {str(path): offences(path, (ROOT / path).read_text()) for path in paths}
    assert {path: imports for path, imports in found.items() if imports} == {}


def test_import_brings_nothing_heavy(tmp_path):
    code = (
        "import json, sys, time\n"
        "start = time.perf_counter()\n"
        "import neuralign.align\n"
        "seconds = time.perf_counter() - start\n"
        "import neuralign.datasets, neuralign.encoders, neuralign.cli\n"
        "neuralign.datasets.list()\n"  # registers every dataset
        "print(json.dumps([seconds, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    seconds, loaded = json.loads(done.stdout)
    print(f"import neuralign.align: {seconds:.2f} s")
    assert "pandas" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def public_modules():
    """Modules with a list of public names."""
    paths = [path for folder in OURS for path in modules(folder)]
    return sorted(dotted(path) for path in paths if "\n__all__" in (ROOT / path).read_text())


@pytest.mark.parametrize("name", public_modules())
def test_public_names_are_there(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(set(module.__all__), key=module.__all__.index), "a name stands twice"
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


@pytest.mark.parametrize("name", ["neuralign", "neuralign.align", "neuralign.datasets", "neuralign.encoders"])
def test_the_doors_say_what_is_behind_them(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = module.nonsense
