"""What is built, what is installed, and that neither gets in the way of another package called datasets."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import neuralign
from neuralign.align import Score, save_results
from neuralign.align.score import tabulate

ROOT = Path(__file__).parents[2]
FOLDERS = ("neuralign", "align", "datasets", "encoders")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# pip must neither read the user's settings nor look at any index.
OFFLINE = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(*command, cwd, check=True):
    """A command that sees neither the checkout nor what the caller's Python was told."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment | OFFLINE, capture_output=True, text=True
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def content(folder):
    """Files that the package of a folder of the checkout is made of."""
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path.relative_to(ROOT) for path in files if not path.name.startswith(".")]


def installed_path(path):
    return path.as_posix() if path.parts[0] == "neuralign" else f"neuralign/{path.as_posix()}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", PYPROJECT["project"]["readme"], *PYPROJECT["project"]["license-files"]):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip"]
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """A virtual environment with the wheel, and beside it the packages, but not the neuralign, of this Python."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=folder)
    [packages] = folder.glob("lib/python*/site-packages")
    # Folders named in a .pth file come last, and .pth files within them, editable installs for one, are not read.
    outer = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "outer.pth").write_text("\n".join(outer))
    return folder


def test_every_folder_with_modules_is_a_package():
    mapping = PYPROJECT["tool"]["setuptools"]["package-dir"]
    assert mapping == {"neuralign": "neuralign"} | {f"neuralign.{name}": name for name in FOLDERS[1:]}
    folders = {Path(installed_path(path)).parent for name in FOLDERS for path in content(name) if path.suffix == ".py"}
    expected = sorted(".".join(folder.parts) for folder in folders)
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == expected
    without = [
        str(folder) for name in expected for folder in [source_of(name)] if not (folder / "__init__.py").is_file()
    ]
    assert without == []


def source_of(package):
    parts = package.split(".")
    return ROOT.joinpath(*parts[1:]) if len(parts) > 1 else ROOT / "neuralign"


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {installed_path(path) for name in FOLDERS for path in content(name)}
    assert {"neuralign/py.typed", "neuralign/align/report/templates/page.html"} <= expected
    assert sorted(expected - names) == [], "left out of the wheel: see package-data in pyproject.toml"
    assert sorted(names - expected) == [], "does not belong into the wheel"


def test_wheel_says_who_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"neuralign-{PYPROJECT['project']['version']}.dist-info"
        assert archive.read(f"{info}/top_level.txt").decode().split() == ["neuralign"]
        assert "neuralign = neuralign.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()


def test_installed_beside_another_package_called_datasets(clean, tmp_path):
    pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    code = (
        "import datasets, neuralign, neuralign.datasets\n"
        "assert datasets.load_dataset and datasets is not neuralign.datasets\n"
        "print(datasets.__file__)\n"
        "print(neuralign.__version__, neuralign.__file__, neuralign.datasets.__file__, sep='\\n')\n"
        "print(*neuralign.datasets.list()['name'])"
    )
    theirs, version, *ours, names = run(clean / "bin" / "python", "-c", code, cwd=tmp_path).stdout.splitlines()
    assert not Path(theirs).is_relative_to(ROOT / "datasets")
    assert version == PYPROJECT["project"]["version"]
    assert all(Path(path).is_relative_to(clean) for path in ours)
    assert "simulated" in names.split()


def test_installed_command_draws_a_report(clean, tmp_path):
    table = tabulate([Score("model", "layer", "data", "s1", "V1", "r", 0.5, n_units=3, n_stimuli=9)])
    save_results(table, tmp_path / "scores.csv")
    run(clean / "bin" / "neuralign", "report", "scores.csv", "--out", "page.html", cwd=tmp_path)
    assert "</html>" in (tmp_path / "page.html").read_text()


def test_the_checkout_root_is_guarded(tmp_path):
    done = run(sys.executable, "-c", "import datasets", cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "ImportError: the checkout root is on sys.path; use python -P or the neuralign command" in done.stderr
    run(sys.executable, "-P", "-c", "import neuralign.datasets", cwd=ROOT)


def test_version():
    assert neuralign.__version__ == PYPROJECT["project"]["version"]


def test_constraints_pin_what_is_needed():
    lines = (ROOT / "constraints.txt").read_text().split("\n")
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == [], "not a plain pin"
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in pins)}
    assert len(pinned) == len(pins), "a package is pinned twice"
    project = PYPROJECT["project"]
    needed = [Requirement(one) for one in [*project["dependencies"], *project["optional-dependencies"]["test"]]]
    assert [one.name for one in needed if canonicalize_name(one.name) not in pinned] == []
    assert [str(one) for one in needed if pinned[canonicalize_name(one.name)] not in one.specifier] == []
    assert pinned["torch"] == "2.13.0"
