"""Extractions that are killed, and extractions that run at the same time, end with the features of one that was not."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from neuralign.encoders.features.shards import Entry

N_STIMULI, N_BLOCKS = 120, 15  # 8 rows per block

# One process imports everything and forks: a child that is killed costs no import. It reads a line with a folder and
# code, runs the code there, and answers with one line.
SERVER = textwrap.dedent(
    """
    import json, os, random, signal, sys, time, traceback
    from pathlib import Path

    import numpy as np
    import torch
    from torch import nn

    from neuralign.datasets import StimulusSet
    from neuralign.encoders import ImageInputs, extract
    from neuralign.encoders.features.store import code_digest

    code_digest()  # once for all children: somebody may be writing code while this runs
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (120, 16, 16, 3), np.uint8)
    stimuli = StimulusSet.from_images(pixels)


    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.relu = nn.ReLU(inplace=True)
            self.second = nn.Conv2d(8, 16, 3)

        def forward(self, x):
            time.sleep(0.01)
            shown = os.open("shown", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(shown, bytes(len(x)))
            os.close(shown)
            return self.second(self.relu(self.first(x)))


    def child():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(os.open("said", os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
                torch.manual_seed(0)
                features = extract(Slow(), stimuli, ["first", "output"], preprocess=ImageInputs((16, 16)),
                                   cache="cache", batch_size=4, device="cpu")
                Path(f"keys-{os.getpid()}").write_text(json.dumps(dict(features.keys_)))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return pid


    def wait(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


    def committed():
        return sum(bool(line) for path in Path("cache").rglob("manifest.jsonl")
                   for line in path.read_text().splitlines())


    for line in sys.stdin:
        order = json.loads(line)
        os.chdir(order["folder"])
        out = {}
        try:
            exec(order["code"], globals() | {"out": out})
            print(json.dumps(out), flush=True)
        except BaseException:
            print(json.dumps({"error": traceback.format_exc()}), flush=True)
    """
)


class Server:
    """Runs code beside the fork server, each time in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        (folder / "server.py").write_text(SERVER)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NEURALIGN_BLOCK_ROWS": "8"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(folder / "server.py")],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, code: str) -> dict:
        self.process.stdin.write(json.dumps({"folder": str(folder), "code": textwrap.dedent(code)}) + "\n")
        self.process.stdin.flush()
        out = json.loads(self.process.stdout.readline())
        said = (folder / "said").read_text() if (folder / "said").exists() else ""
        assert "error" not in out, out["error"] + said
        return out | {"said": said}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("server"))
    yield one
    one.process.stdin.close()
    one.process.wait(30)


def stored(folder: Path) -> dict[str, bytes]:
    """Bytes of every layer, by key."""
    # One that was killed as it wrote what it found leaves an empty file.
    found_by = {path.read_text() for path in folder.glob("keys-*")} - {""}
    assert len(found_by) == 1, found_by  # every process found the same
    [keys] = found_by
    found = {}
    for layer, key in json.loads(keys).items():
        entry = Entry(folder / "cache", key)
        array = entry.read()
        assert array is not None, layer
        found[layer] = (entry.folder / "data").read_bytes()
        assert found[layer] == np.asarray(array).tobytes()
    return found


def entries(folder: Path) -> list[Entry]:
    return [Entry(folder / "cache", path.parent.name) for path in (folder / "cache").rglob("entry.json")]


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """Bytes of a run that nobody disturbs, how many stimuli it showed to the model, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    out = server.run(
        folder,
        """
        start = time.perf_counter()
        assert wait(child()) == 0
        out["seconds"] = time.perf_counter() - start
        """,
    )
    return stored(folder), (folder / "shown").stat().st_size, out["seconds"]


@pytest.mark.parametrize("seed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_ten_kills_at_random_moments_change_no_bit_and_lose_no_block(server, whole, tmp_path, seed):
    bits, shown, seconds = whole
    out = server.run(
        tmp_path,
        f"""
        moments = random.Random({seed})
        out["progress"] = []
        attempts = 0
        while len(out["progress"]) < 10 and (attempts := attempts + 1) < 60:
            pid = child()
            time.sleep(moments.uniform(0.0, {seconds}))
            os.kill(pid, signal.SIGKILL)
            ended = wait(pid)
            assert ended in (0, -signal.SIGKILL), ended
            if ended == 0 or committed() >= {2 * N_BLOCKS}:  # too fast for its killer: take blocks away from it
                for path in Path("cache").rglob("manifest.jsonl"):
                    lines = [line for line in path.read_text().splitlines() if line]
                    path.write_text("\\n".join(lines[:3]) + "\\n")
            else:
                out["progress"].append(committed())
        out["before"] = Path("shown").stat().st_size
        assert wait(child()) == 0
        """,
    )
    assert stored(tmp_path) == bits
    assert len(out["progress"]) == 10
    assert any(0 < done < 2 * N_BLOCKS for done in out["progress"]), out["progress"]  # in the middle of its work
    left = 8 * (N_BLOCKS - out["progress"][-1] // 2)  # the blocks of two layers are committed one after the other
    assert (tmp_path / "shown").stat().st_size - out["before"] <= left + (shown - N_STIMULI)


def test_a_damaged_block_is_reported_and_it_alone_is_computed_again(server, whole, tmp_path):
    bits, shown, _ = whole
    server.run(
        tmp_path,
        """
        assert wait(child()) == 0
        for data in Path("cache").rglob("data"):
            content = bytearray(data.read_bytes())
            content[len(content) // 2] ^= 1
            data.write_bytes(content)
        os.unlink("shown")
        assert wait(child()) == 0
        """,
    )
    said = (tmp_path / "said").read_text()
    for layer in bits:
        assert f"{layer}: block 7 of {N_BLOCKS} damaged on disk, to be computed again" in said
    assert stored(tmp_path) == bits
    assert 8 <= (tmp_path / "shown").stat().st_size <= 8 + (shown - N_STIMULI)  # one block, after a look at the model


def test_a_second_run_shows_the_model_nothing(server, whole, tmp_path):
    server.run(
        tmp_path,
        """
        assert wait(child()) == 0
        os.unlink("shown")
        assert wait(child()) == 0
        """,
    )
    assert stored(tmp_path) == whole[0]
    assert not (tmp_path / "shown").exists()


def test_writers_at_the_same_time_share_the_work(server, whole, tmp_path):
    bits, shown, _ = whole
    server.run(
        tmp_path,
        """
        children = [child() for _ in range(3)]
        assert [wait(pid) for pid in children] == [0, 0, 0]
        """,
    )
    assert stored(tmp_path) == bits
    for entry in entries(tmp_path):
        names = sorted(path.name for path in entry.folder.iterdir())
        assert names == ["data", "entry.json", "manifest.jsonl", "stamp.json"]
        lines = (entry.folder / "manifest.jsonl").read_text().splitlines()
        blocks = [json.loads(line)["block"] for line in lines if line]
        assert sorted(blocks) == list(range(N_BLOCKS))  # nobody computed what another had
    # Each looks at its model first; two may show it the same stimuli, each for one of the two layers.
    assert (tmp_path / "shown").stat().st_size <= 2 * N_STIMULI + 3 * (shown - N_STIMULI)


def test_a_writer_takes_over_from_one_that_is_killed(server, whole, tmp_path):
    server.run(
        tmp_path,
        """
        first, second = child(), child()
        until = time.time() + 20
        while committed() < 4 and time.time() < until:
            time.sleep(0.001)
        os.kill(first, signal.SIGKILL)
        wait(first)
        assert wait(second) == 0
        """,
    )
    assert stored(tmp_path) == whole[0]
