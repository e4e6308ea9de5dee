"""The examples run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
