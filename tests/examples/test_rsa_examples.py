"""The examples of RSA run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "compare_models_of_human_it.py"


def run(folder, **environment):
    command = [sys.executable, "-P", str(EXAMPLE)]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.slow
def test_models_of_human_it_are_told_apart_for_these_subjects_only(tmp_path, real_data, data_root):
    real_data("rsatoolbox_92")
    done = run(tmp_path, NEURALIGN_DATA=str(data_root))
    assert done.returncode == 0, done.stderr
    apart = dict(re.findall(r"over (\w+): (\d+) of 28 pairs told apart", done.stdout))
    assert int(apart["stimuli"]) > 15 and apart["both"] == "0"
    scores = {
        name: float(score) for name, score in re.findall(r"^ *(weighted sum|animacy) +(0\.\d+)", done.stdout, re.M)
    }
    assert scores["weighted sum"] > scores["animacy"] > 0.3
    assert len(re.findall(r"^thresholds .*ceiling 0\.\d+ to 0\.\d+$", done.stdout, re.M)) == 4
    assert "Models compared" in (tmp_path / "human_it_report.html").read_text()


def test_without_data_it_says_why_it_is_skipped(tmp_path):
    done = run(tmp_path, NEURALIGN_DATA=str(tmp_path))
    assert done.returncode == 0 and done.stdout.startswith("skipped: kriegeskorte-92: no folder")
