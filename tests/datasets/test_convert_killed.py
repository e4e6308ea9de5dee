"""A conversion that is killed at any moment, by a signal that no program can answer, goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from neuralign.datasets.convert import plan_conversion
from neuralign.datasets.unit_store import damaged_groups, open_store

# Twelve sessions of unequal length; reading a panel takes a moment, as it does for a compressed volume.
SCRIPT = """
import sys, time
import numpy as np
from neuralign.datasets import Recording
from neuralign.datasets.convert import convert
from neuralign.datasets.lazy import Lazy

class Slow(Lazy):
    def __init__(self, pause):
        ends = np.cumsum(20 + np.arange(12) % 5)
        self.row_groups = tuple(slice(int(a), int(b)) for a, b in zip([0, *ends[:-1]], ends))
        self.shape, self.dtype, self.pause = (int(ends[-1]), 900), np.dtype(np.float32), pause

    def block(self, rows, units):
        time.sleep(self.pause)
        row, unit = np.arange(rows.start, rows.stop)[:, None], np.arange(units.start, units.stop)
        return ((row * 131 + unit * 17 + 7) % 997 / 100).astype(np.float32)

    def fingerprint(self):
        return "twelve sessions"

def recording(pause=0.0):
    slow = Slow(pause)
    return Recording(slow, {"stimulus": [f"s{i % 90}" for i in range(slow.shape[0])]})

def tell(done, n):
    print(done, n, flush=True)

if __name__ == "__main__":
    print("ready", flush=True)
    convert(recording(float(sys.argv[2])), sys.argv[1], max_memory=1, progress=tell)
    print("whole", flush=True)
"""


def start(folder, pause):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(pause)], stdout=subprocess.PIPE, text=True, env=environment
    )


def reads(child, text):
    """Wait for a line of the child."""
    return any(line.strip() == text for line in child.stdout)


def finish(folder):
    child = start(folder, 0)
    assert child.communicate()[0].endswith("whole\n") and child.returncode == 0


@pytest.fixture(scope="module")
def recording():
    names = {"__name__": "fake"}
    exec(SCRIPT, names)
    return names["recording"]()


def test_killed_five_times_and_the_same_in_the_end(tmp_path, recording):
    rng = np.random.default_rng(4)
    folder = tmp_path / "killed.units"
    seen = []
    for done in (1, 3, 3, 7, 10):
        child = start(folder, 0.02)
        if not (folder / "done.json").exists() or len(json.loads((folder / "done.json").read_text())) < done:
            assert reads(child, f"{done} 12")
        else:
            assert reads(child, "ready")
        time.sleep(rng.uniform(0, 0.1))  # somewhere within a session
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        found = json.loads((folder / "done.json").read_text())
        seen.append(len(found))
        assert done <= len(found) < 12 and damaged_groups(folder) == []
        with pytest.raises(ValueError, match=f"{len(found)} of 12 groups of rows are there"):
            open_store(folder)
        assert plan_conversion(recording, folder).text().endswith(f"{len(found)} of 12 sessions are there")
    assert seen == sorted(seen)
    # A session that was torn: some of its tiles are there, or hold anything at all.
    torn = next(group for group in range(12) if str(group) not in found)
    rows = recording.responses.row_groups[torn]
    with (folder / "responses.bin").open("r+b") as file:
        file.seek(rows.start * 256 * 2)
        file.write(rng.bytes((rows.stop - rows.start) * 256 * 2))
    before = (folder / "responses.bin").stat().st_ino
    (folder / ".done.json.torn").write_text("{")
    finish(folder)
    assert (folder / "responses.bin").stat().st_ino == before
    whole = tmp_path / "whole.units"
    finish(whole)
    for name in ("responses.bin", "store.json", "done.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    np.testing.assert_allclose(open_store(folder).read(), recording.read(), rtol=5e-4)
    assert {one.name for one in folder.iterdir()} == {one.name for one in whole.iterdir()}


def test_what_is_there_is_not_read_again(tmp_path, recording):
    """The sessions that are done are neither read nor written when a conversion goes on."""
    child = start(tmp_path / "one.units", 0.02)
    assert reads(child, "5 12")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    done = set(json.loads((tmp_path / "one.units" / "done.json").read_text()))
    asked = []
    responses = recording.responses
    original = responses.block

    class Spy(type(responses)):
        def block(self, rows, units):
            asked.append(self.row_groups.index(rows))
            return original(rows, units)

    from neuralign.datasets.convert import convert

    convert(recording._with(responses=Spy(0.0)), tmp_path / "one.units")
    assert set(asked) == set(range(12)) - {int(one) for one in done} and len(done) >= 5
