"""The examples run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "examples"


def run(name, folder, *arguments, **environment):
    command = [sys.executable, "-P", str(FOLDER / name), *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_fit_voxelwise_encoder(tmp_path):
    printed = run("fit_voxelwise_encoder.py", tmp_path)
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.startswith(("V1", "FFA"))}
    assert float(rows["V1"][1]) > 0.7 > 0.4 > float(rows["FFA"][1])


def is_picture(path):
    """Whether a PNG of some width is there, with more on it than one colour."""
    with Image.open(path) as image:
        return image.width > 1000 and len(image.convert("RGB").getcolors(2**20)) > 100


def numbers(printed, name):
    """Of every line that is a name and numbers."""
    lines = re.findall(rf"^{name}((?: +-?[\d.]+)+)$", printed, re.MULTILINE)
    return [[float(word) for word in words.split()] for words in lines]


def test_voxelwise_encoding(tmp_path):
    printed = run("voxelwise_encoding.py", tmp_path)
    scores, shares = zip(*(numbers(printed, region) for region in ("V1", "V4", "FFA", "PPA")), strict=True)
    for cross_validated, nested, test, ceiling, alpha in scores:
        assert nested <= cross_validated < ceiling and abs(test - nested) < 0.15 and alpha > 0
    assert scores[0][2] > 0.7 > 0.5 > max(test for _, _, test, *_ in scores[1:])
    assert [row.index(max(row)) for row in shares] == [0, 1, 2, 2]  # gabor, texture, annotations
    assert min(max(row) for row in shares) > 0.9
    weights = np.load(tmp_path / "voxelwise_weights.npy", mmap_mode="r")
    assert f"weights of {weights.shape[1]} voxels along {weights.shape[0]} axes" in printed
    assert is_picture(tmp_path / "voxelwise_encoding.png")


def test_variance_partitioning(tmp_path):
    (tmp_path / "here").mkdir()
    printed = run("variance_partitioning.py", tmp_path, "here")
    split = [numbers(printed, region)[0] for region in ("V1", "V4", "FFA", "PPA")]
    for gabor, texture, annotations, whole, ceiling in split:
        assert gabor + texture + annotations == pytest.approx(whole, abs=0.002) and 0.5 < whole < ceiling
    assert [row.index(max(row[:3])) for row in split] == [0, 1, 2, 2]
    unique = {name: numbers(printed, name)[0] for name in ("gabor", "texture", "annotations")}
    assert [max(unique, key=lambda name: unique[name][column]) for column in range(4)] == [
        "gabor", "texture", "annotations", "annotations",
    ]  # fmt: skip
    assert min(min(values) for values in unique.values()) > -0.03
    assert is_picture(tmp_path / "here" / "variance_partitioning.png")


@pytest.mark.parametrize("options", [(), ("--workers", "1")])
def test_whole_brain(tmp_path, options):
    printed = run("whole_brain.py", tmp_path, "--units", "2000", "--stimuli", "1200", "--features", "256", *options)
    assert "two subjects of 1200 stimuli x 2000 voxels" in printed
    assert printed.count("voxels a second") == 2 and "stimuli shared with subject 1" in printed
    found = [line for line in printed.splitlines() if "FDR" in line]
    rightly, of_all = zip(*(map(float, re.findall(r"([\d.]+)%", line)) for line in found), strict=True)
    assert min(rightly) > 94 and min(of_all) > 95
    following, elsewhere = zip(*re.findall(r"test r: (\S+) where .*, (\S+) elsewhere", printed), strict=True)
    assert all(float(r) > 0.3 for r in following) and all(abs(float(r)) < 0.01 for r in elsewhere)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_whole_brain_at_its_default_size_stays_in_memory(tmp_path):
    printed = run("whole_brain.py", tmp_path, "--folder", str(tmp_path))
    peaks = [float(size) for size in re.findall(r"peak memory (\S+) GB", printed)]
    assert peaks[-1] - peaks[0] < 0.5
    assert np.load(tmp_path / "weights2.npy", mmap_mode="r").shape[1] == 15_000


@pytest.mark.slow
def test_rsa_layers_and_regions(tmp_path):
    printed = run("rsa_layers_and_regions.py", tmp_path)
    assert "Report: rsa_report.html" in printed and (tmp_path / "rsa_report.html").stat().st_size > 100_000


@pytest.mark.slow
def test_reproduce_v4_benchmark(tmp_path, data_root):
    printed = run("reproduce_v4_benchmark.py", tmp_path, NEURALIGN_DATA=str(data_root))
    scores = {tuple(line.split()[:2]): float(line.split()[2]) for line in printed.splitlines() if "resnet20" in line}
    assert max(scores, key=scores.get) == ("resnet20-cifar", "layer2")


def test_v4_benchmark_says_why_it_is_skipped(tmp_path):
    assert run("reproduce_v4_benchmark.py", tmp_path, NEURALIGN_DATA=str(tmp_path)).startswith("skipped: ")


def test_feature_extraction(tmp_path):
    printed = run("feature_extraction.py", tmp_path, NEURALIGN_CACHE=str(tmp_path / "cache"))
    seconds = dict(re.findall(r"(first|second) run: ([\d.]+) s", printed))
    assert seconds.keys() == {"first", "second"}
    agreement = [float(x) for x in re.findall(r"Spearman ([\d.]+)", printed)]
    assert len(agreement) == 4 and min(agreement) > 0.95
    cka = np.array([numbers(printed, layer)[0] for layer in ("conv1", "layer1", "layer2", "layer3")])
    np.testing.assert_allclose(cka, cka.T, atol=1e-3)
    np.testing.assert_allclose(np.diag(cka), 1, atol=1e-3)
