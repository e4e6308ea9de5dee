"""What README promises runs as it is written."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neuralign.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_ten_lines_on_ones_own_arrays(tmp_path, monkeypatch):
    code = re.search(r"```python\n(import numpy.*?)```", README, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    images = rng.integers(0, 256, (40, 24, 24, 3), np.uint8)
    signal = images.reshape(40, -1)[:, :6] / 255.0
    np.save("images.npy", images)
    np.save("responses.npy", np.concatenate([signal, signal]) + 0.1 * rng.standard_normal((80, 6)))
    np.save("shown.npy", np.tile(np.arange(40), 2))
    torch.manual_seed(0)
    names = {
        "my_network": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3)),
        "my_preprocess": lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
    }
    exec(code, names)
    table = names["table"]
    assert set(table["layer"]) == {"0", "1", "2"} and table["ceiling"].notna().all()
    assert (tmp_path / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^(?:\$ )?neuralign (\w+)", README, re.MULTILINE))))
def test_commands_exist(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert not ended.value.code and "Usage: neuralign" in capsys.readouterr().out
