"""The example of attention routing runs as it stands, and shows what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "attention_routing.py"


def run(folder, **environment):
    command = [sys.executable, "-P", str(EXAMPLE), "here"]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(printed, name):
    """Of every line that is a name and numbers."""
    lines = re.findall(rf"^{name}((?: +[-\d.]+)+)$", printed, re.MULTILINE)
    return [[float(word) for word in words.split()] for words in lines]


def check(printed, folder):
    columns = ["flat ridge", "pooled ridge", "pooling grid", "attention", "ceiling"]
    assert re.search(r"^ +" + " +".join(columns) + "$", printed, re.MULTILINE)
    assert re.search(r"^ +face +flower +house +tool$", printed, re.MULTILINE)
    scores, hits, chance = ({region: numbers(printed, region)[k] for region in ("V1", "FFA", "PPA")} for k in range(3))
    for region, column in (("FFA", 0), ("PPA", 2)):
        *static, attention, ceiling = scores[region]
        assert max(static) + 0.1 < attention < ceiling
        assert hits[region][column] == max(hits[region]) > 0.75 > 0.35 > chance[region][column]
    *static, attention, ceiling = scores["V1"]  # retinotopic: one query for the region loses to a field per voxel
    assert attention < max(static) < ceiling
    with Image.open(folder / "attention_routing.png") as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(2**22)) > 1000
    page = (folder / "attention_routing.html").read_text()
    assert "FFA: attention peaks on the face in" in page and "PPA: attention peaks on the house in" in page


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_attention_finds_faces_and_houses(tmp_path, trained, request):
    (tmp_path / "here").mkdir()
    root = tmp_path
    if trained:
        request.getfixturevalue("real_data")("weights_cifar_resnet")
        root = request.getfixturevalue("data_root")
    printed = run(tmp_path, NEURALIGN_DATA=str(root))
    assert ("resnet20-cifar layer2" if trained else "resnet20-cifar-untrained layer2") in printed
    check(printed, tmp_path / "here")
