"""The store: what was written is read, what was damaged is noticed, and what a disk cannot hold is refused."""

import ast
import errno
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import neuralign.encoders.features
from neuralign.datasets import StimulusSet
from neuralign.encoders import Features, ImageInputs, extract
from neuralign.encoders.features import disk, ledger, shards
from neuralign.encoders.features.ledger import Ledger, recall_calls, remember_calls
from neuralign.encoders.features.shards import Entry, Form, check_room, readable
from neuralign.encoders.features.store import NOT_NUMBERS, cache_root, code_digest

KEY = "ab" + 62 * "0"


def values(rows=10, shape=(3, 2), dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal((rows, *shape)).astype(dtype)


def filled(root, array, block=4, key=KEY):
    """An entry with every block committed, beginning with the last."""
    entry = Entry(root, key)
    form = entry.create(len(array), array.shape[1:], array.dtype.name, block, {"layer": "relu", "model": "net"})
    for one in reversed(range(form.blocks)):
        with entry.claim(one) as mine:
            assert mine
            entry.commit(one, array[slice(*form.span(one))])
    return entry


# ------------------------------------------------------------------------------------------------ rows in blocks


@pytest.mark.parametrize("shape", [(), (5,), (3, 2), (0,)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("block", [1, 4, 10, 64])
def test_what_is_committed_is_read_as_a_plain_file(tmp_path, shape, dtype, block):
    array = values(shape=shape, dtype=dtype)
    entry = filled(tmp_path, array, block)
    found = Entry(tmp_path, KEY).read()
    assert isinstance(found, np.memmap) or array.size == 0
    assert found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)
    assert (entry.folder / "data").read_bytes() == array.tobytes()  # no header, row after row
    assert not found.flags.writeable or array.size == 0
    np.testing.assert_array_equal(found[[7, 1]], array[[7, 1]])


def test_spans_cover_all_rows_once():
    for rows in range(12):
        for block in range(1, 14):
            form = Form(rows, (2,), "float16", block)
            covered = [row for one in range(form.blocks) for row in range(*form.span(one))]
            assert covered == list(range(rows))
            assert form.bytes == rows * 4


def test_nothing_is_read_before_every_block_is_there(tmp_path):
    array = values()
    entry = Entry(tmp_path, KEY)
    assert entry.read() is None and entry.done() == set() and entry.form is None
    form = entry.create(10, (3, 2), "float32", 4, {})
    for block in (2, 0):
        entry.commit(block, array[slice(*form.span(block))])
        assert entry.read() is None and Entry(tmp_path, KEY).read() is None
    assert entry.done() == {0, 2}
    entry.commit(1, array[4:8])
    np.testing.assert_array_equal(entry.read(), array)


def test_the_first_writer_says_how_large_blocks_are(tmp_path):
    array = values()
    entry = Entry(tmp_path, KEY)
    assert entry.create(10, (3, 2), "float32", 4, {"a": 1}, {"times": [0.5]}).block == 4
    assert Entry(tmp_path, KEY).create(10, (3, 2), "float32", 8, {"a": 2}).block == 4
    assert entry.about == {"times": [0.5]}
    with pytest.raises(ValueError, match=r"values of block 0 are float32 \(8, 3, 2\); expected float32 \(4, 3, 2\)"):
        entry.commit(0, array[:8])
    with pytest.raises(ValueError, match="float64"):
        entry.commit(0, array[:4].astype(float))
    assert entry.done() == set()
    with pytest.raises(ValueError, match="holds no entry; create it"):
        Entry(tmp_path, "cd" + KEY).commit(0, array[:4])


def test_rows_that_were_left_out_are_tried_again(tmp_path):
    array = values()
    entry = Entry(tmp_path, KEY)
    entry.create(10, (3, 2), "float32", 4, {})
    for block in range(3):
        part = array[4 * block : 4 * block + 4].copy()
        if block == 1:
            part[[0, 3]] = 0
        entry.commit(block, part, [4, 7] if block == 1 else ())
    assert entry.done() == {0, 2} and entry.done(holes=True) == {0, 1, 2}
    assert entry.holes() == [4, 7]
    assert entry.read() is None  # rows of zeros must not pass for features
    known = np.delete(np.arange(10), [4, 7])
    np.testing.assert_array_equal(entry.read(holes=True)[known], array[known])
    with entry.claim(1) as mine:
        assert mine
        entry.commit(1, array[4:8])
    assert entry.holes() == []
    np.testing.assert_array_equal(Entry(tmp_path, KEY).read(), array)


def test_a_whole_array_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_WHOLE_WRITE", 100)  # four rows of 24 bytes
    array = values()
    entry = Entry(tmp_path, KEY)
    entry.write(array, {"layer": "relu"})
    assert entry.form.blocks == 3
    before = (entry.folder / "data").stat()
    entry.write(array + 1, {"layer": "relu"})  # the key says that it is the same
    assert (entry.folder / "data").stat() == before
    np.testing.assert_array_equal(entry.read(), array)
    assert json.loads((entry.folder / "entry.json").read_text())["made_from"] == {"layer": "relu"}


def test_the_umask_has_its_say(tmp_path):
    before = os.umask(0o027)
    try:
        entry = filled(tmp_path, values())
    finally:
        os.umask(before)
    assert entry.folder.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in entry.folder.iterdir()} == {0o640}


def test_an_entry_travels_to_another_process(tmp_path):
    entry = filled(tmp_path, values())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(entry)).read(), values())


# ------------------------------------------------------------------------------------------------ damage


def flip(path, place=50):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def flip_and_hide(path):
    """What a disk or a tool does that gives a file its old times back."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE = {
    "flipped bit": lambda folder: flip(folder / "data"),
    "flipped bit, same time": lambda folder: flip_and_hide(folder / "data"),
    "truncated": lambda folder: os.truncate(folder / "data", 100),
    "empty": lambda folder: (folder / "data").write_bytes(b""),
    "no data": lambda folder: (folder / "data").unlink(),
    "not finite": lambda folder: (folder / "data").write_bytes(np.full((10, 3, 2), np.nan, np.float32).tobytes()),
    "no entry": lambda folder: (folder / "entry.json").unlink(),
    "entry without shape": lambda folder: (folder / "entry.json").write_text("{}"),
    "entry of another kind": lambda folder: (folder / "entry.json").write_text("[3]"),
    "entry of another shape": lambda folder: (folder / "entry.json").write_text(
        (folder / "entry.json").read_text().replace('"shape": [3, 2]', '"shape": [3, 5]')
    ),
    "no manifest": lambda folder: (folder / "manifest.jsonl").unlink(),
    "manifest of another kind": lambda folder: (folder / "manifest.jsonl").write_text('[1]\n{"block": "x"}\n3\n'),
    "manifest of bytes": lambda folder: (folder / "manifest.jsonl").write_bytes(bytes(range(256)) * 4),
}


@pytest.mark.filterwarnings("ignore:stored features of net relu")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_never_read_and_is_mended_by_writing_again(tmp_path, damage):
    array = values()
    entry = filled(tmp_path, array)
    held = entry.read()[:0]  # a reader that is still there
    DAMAGE[damage](entry.folder)
    assert Entry(tmp_path, KEY).read() is None
    assert entry.read() is None or (damage == "manifest of bytes" and np.array_equal(entry.read(), array))
    Entry(tmp_path, KEY).write(array, {"layer": "relu", "model": "net"})
    for seen in (entry, Entry(tmp_path, KEY)):
        np.testing.assert_array_equal(seen.read(), array)
    assert (entry.folder / "data").stat().st_size == array.nbytes
    del held


@pytest.mark.parametrize("harmless", ["no stamp", "torn stamp", "touched", "longer", "replaced by a copy"])
def test_data_that_are_whole_are_kept_whatever_happened_to_their_file(tmp_path, harmless, monkeypatch):
    array = values()
    entry = filled(tmp_path, array)
    data, stamp = entry.folder / "data", entry.folder / "stamp.json"
    if harmless == "no stamp":
        stamp.unlink()
    elif harmless == "torn stamp":
        stamp.write_text('{"size": 2')
    elif harmless == "touched":
        data.touch()
    elif harmless == "longer":
        data.write_bytes(data.read_bytes() + b"more")
    else:
        copy = data.with_name("copy")
        copy.write_bytes(data.read_bytes())
        copy.replace(data)
    np.testing.assert_array_equal(Entry(tmp_path, KEY).read(), array)
    monkeypatch.setattr(shards, "hash_of", None)  # looked through once, and not again
    np.testing.assert_array_equal(Entry(tmp_path, KEY).read(), array)


def test_reading_what_nobody_touched_reads_no_data(tmp_path, monkeypatch):
    entry = filled(tmp_path, values())
    monkeypatch.setattr(shards, "hash_of", None)  # calling it would fail
    assert entry.read() is not None
    assert entry.create(10, (3, 2), "float32", 4, {}).blocks == 3


def test_damage_right_after_the_last_block_is_seen(tmp_path):
    """However slowly the clock of the disk ticks."""
    for attempt in range(20):
        entry = filled(tmp_path, values(), key=f"{attempt:064d}")
        with (entry.folder / "data").open("r+b") as file:
            file.write(b"\xff")
        with pytest.warns(UserWarning, match="block 0 of 3"):
            assert entry.read() is None


def test_damaged_blocks_are_counted_and_they_alone_are_done_again(tmp_path):
    array = values(40)
    entry = filled(tmp_path, array)
    for row in (5, 6, 30):
        flip(entry.folder / "data", 24 * row)
    with pytest.warns(UserWarning, match=r"net relu: 2 blocks \(first: 1\) of 10 damaged on disk") as caught:
        assert Entry(tmp_path, KEY).read() is None
    assert len(caught) == 1
    assert entry.done() == set(range(10)) - {1, 7}
    assert entry.verify() == []  # the others are whole
    for block in (1, 7):
        entry.commit(block, array[4 * block : 4 * block + 4])
    np.testing.assert_array_equal(entry.read(), array)


def test_a_manifest_that_is_cut_anywhere_lies_about_no_block(tmp_path, monkeypatch):
    array = values()
    entry = filled(tmp_path, array)  # blocks 2, 1, 0
    text = (entry.folder / "manifest.jsonl").read_bytes()
    monkeypatch.setattr(shards, "sync", lambda _: None)  # hundreds of times it would take seconds
    for length in range(len(text) + 1):
        (entry.folder / "manifest.jsonl").write_bytes(text[:length])
        seen = Entry(tmp_path, KEY)
        whole = [json.loads(line)["block"] for line in text[:length].split(b"\n")[:-1] if line]
        assert seen.done() == set(whole)
        for block in set(range(3)) - seen.done():
            seen.commit(block, array[4 * block : 4 * block + 4])
        assert Entry(tmp_path, KEY).done() == {0, 1, 2}, length


def test_committed_blocks_are_looked_through_when_a_run_is_taken_up_again(tmp_path):
    array = values()
    entry = Entry(tmp_path, KEY)
    form = entry.create(10, (3, 2), "float32", 4, {})
    for block in (0, 1):
        entry.commit(block, array[slice(*form.span(block))])
    flip(entry.folder / "data", 100)
    with pytest.warns(UserWarning, match="block 1 of 3 damaged"):
        Entry(tmp_path, KEY).create(10, (3, 2), "float32", 4, {})
    assert entry.done() == {0}


# ------------------------------------------------------------------------------------------------ several writers


def test_a_block_belongs_to_one_at_a_time(tmp_path):
    entry, other = Entry(tmp_path, KEY), Entry(tmp_path, KEY)
    entry.create(10, (3, 2), "float32", 4, {})
    with entry.claim(0) as mine:
        with other.claim(0) as too, other.claim(1) as next_one:
            assert (mine, too, next_one) == (True, False, True)
        with other.claim(0) as too:  # a refusal leaves the lock where it was
            assert not too
        entry.commit(0, values()[:4])
    with other.claim(0) as too:
        assert not too  # it is done
    with other.claim(1) as too:
        assert too
    assert not (entry.folder / "locks").exists()


def _write(root, array, ready, go):
    entry = Entry(root, KEY)
    ready.set()
    go.wait(20)
    form = entry.create(len(array), array.shape[1:], array.dtype.name, 4, {})
    while len(entry.done()) < form.blocks:
        for block in sorted(set(range(form.blocks)) - entry.done(), key=lambda one: hash((one, os.getpid()))):
            with entry.claim(block) as mine:
                if mine:
                    entry.commit(block, array[slice(*form.span(block))])


def test_processes_and_threads_write_every_block_once(tmp_path):
    array = values(400)
    context = get_context("fork")
    readies, go = [context.Event() for _ in range(2)], context.Event()
    processes = [context.Process(target=_write, args=(tmp_path, array, ready, go)) for ready in readies]
    for process in processes:
        process.start()
    for ready in readies:
        assert ready.wait(20)
    threads = [threading.Thread(target=_write, args=(tmp_path, array, context.Event(), go)) for _ in range(3)]
    for thread in threads:
        thread.start()
    go.set()
    for one in (*processes, *threads):
        one.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    entry = Entry(tmp_path, KEY)
    np.testing.assert_array_equal(entry.read(), array)
    lines = [json.loads(line) for line in (entry.folder / "manifest.jsonl").read_text().splitlines() if line]
    assert sorted(line["block"] for line in lines) == list(range(100))


def test_where_the_disk_knows_no_locks_everybody_writes(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with caplog.at_level("INFO", "neuralign"):
        entry = filled(tmp_path, values())
    with entry.claim(0) as mine:
        assert not mine  # done
    np.testing.assert_array_equal(entry.read(), values())
    assert "no file locks" in caplog.text


# ------------------------------------------------------------------------------------------------ full disks


def raising(number, after=0):
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))

    return fail


def test_a_disk_without_room_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.posix_fallocate", raising(errno.ENOSPC))
    entry = Entry(tmp_path, KEY)
    with pytest.raises(ValueError, match=r"features need 240 B, and .* free; store less with reduce="):
        entry.create(10, (3, 2), "float32", 4, {})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    entry.write(values(), {})
    np.testing.assert_array_equal(entry.read(), values())


def test_more_than_is_free_is_refused_by_size_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=10**12, free=5 * 10**9))
    check_room(tmp_path / "not" / "there", 4 * 10**9)
    with pytest.raises(ValueError, match=r"need 4\.5 GB, and .* has 5 GB free; try grid"):
        check_room(tmp_path, 45 * 10**8, "try grid")
    with pytest.raises(ValueError, match=r"need 812 GB"):
        Entry(tmp_path, KEY).create(812 * 10**6, (250,), "float32", 4, {})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_disk_that_fills_up_meanwhile_loses_no_block_and_commits_no_half(tmp_path, monkeypatch):
    array = values()
    entry = Entry(tmp_path, KEY)
    entry.create(10, (3, 2), "float32", 4, {})
    entry.commit(0, array[:4])
    write = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda file, raw, place: write(file, raw[:10], place))  # as a signal may
    entry.commit(1, array[4:8])
    monkeypatch.setattr("os.pwrite", raising(errno.ENOSPC, after=0))
    with pytest.raises(ValueError, match="features need 240 B, and"):
        entry.commit(2, array[8:])
    assert entry.done() == {0, 1}
    monkeypatch.undo()
    append = os.write
    for short in (0, 1, 30):
        monkeypatch.setattr("os.write", lambda file, text, short=short: append(file, text[:short]))
        with pytest.raises(ValueError, match="features need 240 B, and"):
            entry.commit(2, array[8:])
        monkeypatch.undo()
        assert entry.done() == Entry(tmp_path, KEY).done() == {0, 1}
    entry.commit(2, array[8:])
    np.testing.assert_array_equal(entry.read(), array)


ON_A_SMALL_DISK = """
import os, sys
from pathlib import Path
import numpy as np
from neuralign.encoders.features import shards

def refused(work):
    try:
        work()
    except ValueError as error:
        assert "features need 4 MB, and" in str(error), error
    else:
        raise AssertionError(work)

root = Path(sys.argv[1])
array = np.ones((1000, 1000), np.float32)
entry = shards.Entry(root, "ab" * 32)
describe = ((1000,), "float32", 100, {})
refused(lambda: entry.create(1000, *describe))
shards.check_room = lambda *_: None
refused(lambda: entry.create(1000, *describe))
assert not [path for path in root.rglob("*") if path.is_file()]
del os.posix_fallocate  # a disk that cannot reserve: it is full in the middle
entry.create(1000, *describe)
def write():
    for block in range(10):
        entry.commit(block, array[:100])
refused(write)
done = sorted(entry.done())
assert done == list(range(len(done))) and 2 <= len(done) <= 5, done
assert entry.verify() == [] and entry.read() is None
"""


def test_a_disk_that_is_full_for_real(tmp_path):
    mount = f"mount -t tmpfs -o size=2m tmpfs {tmp_path}"
    alone = ["unshare", "--map-root-user", "--mount", "bash", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*alone, mount], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk of their own")
    python = f"{sys.executable} -P -c '{ON_A_SMALL_DISK}' {tmp_path}"
    done = subprocess.run([*alone, f"{mount} && {python}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_that_cannot_reserve_is_written_all_the_same(tmp_path, monkeypatch, number):
    monkeypatch.setattr("os.posix_fallocate", raising(number))
    np.testing.assert_array_equal(filled(tmp_path, values()).read(), values())


def test_other_errors_of_the_disk_are_not_called_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("os.posix_fallocate", raising(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        Entry(tmp_path, KEY).create(10, (3, 2), "float32", 4, {})


def test_a_killed_creation_leaves_nothing_that_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Entry(tmp_path, KEY).create(10, (3, 2), "float32", 4, {})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (19.4e9, "19.4 GB"),
        (812e9, "812 GB"),
        (1.5e15, "1.5 PB"),
        (2e22, "20000 EB"),
    ],
)
def test_sizes_are_easy_to_read(size, text):
    assert readable(size) == text


# ------------------------------------------------------------------------------------------------ keys


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()


def test_one_weight_one_pixel_or_one_constant_is_another_key(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)

    def key(module=None, pixels=pixels, **changed):
        inputs = ImageInputs(**{"size": (16, 16), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)} | changed)
        features = extract(module or net(), StimulusSet.from_images(pixels), "0", preprocess=inputs, cache=tmp_path)
        return features.keys_["0"], np.array(features["0"])

    base, first = key()
    assert key()[0] == base
    weight = net()
    with torch.no_grad():
        weight[0].weight[1, 2, 0, 1] = torch.nextafter(weight[0].weight[1, 2, 0, 1], torch.tensor(9.0))
    pixel = pixels.copy()
    pixel[2, 7, 3, 1] ^= 1
    others = [
        key(weight),
        key(pixels=pixel),
        key(mean=(0.5, 0.5, np.nextafter(0.5, 1))),
        key(std=(0.25, 0.2500001, 0.25)),
        key(resample="bilinear"),
    ]
    assert len({base, *(one for one, _ in others)}) == 6
    for (_, array), differs in zip(others, (True, True, False, True, False), strict=True):
        if differs:  # and nobody was handed what was stored for the other
            assert not np.array_equal(array, first)


def test_code_that_reads_stimuli_counts_and_code_that_stores_does_not(monkeypatch):
    names = set()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: names.add(path.name) or read(path))
    code_digest.__wrapped__()
    assert {"filters.py", "media.py", "stimuli.py", "stimulus_sources.py", "sources.py", "digest.py"} <= names
    assert {"loader.py", "products.py", "windows.py"} <= names  # in folders below, and beside
    assert not {"shards.py", "ledger.py", "upkeep.py", "writer.py", "disk.py", "manifest.py"} & names


def test_every_module_that_features_are_computed_with_is_in_the_key(monkeypatch):
    """What any module of features imports from elsewhere in the package is hashed, or moves no number."""
    here = Path(neuralign.encoders.features.__file__).parent
    read, hashed = Path.read_bytes, set()
    monkeypatch.setattr(Path, "read_bytes", lambda path: hashed.add(path.resolve()) or read(path))
    code_digest.__wrapped__()
    assert {name for name in NOT_NUMBERS if not (here / name).is_file()} == set()
    harmless = {"errors.py", "rdms.py", "device.py"}  # messages, positions of ids, where tensors lie
    for path in here.rglob("*.py"):
        package = path.parent.parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = Path(*package[: len(package) - node.level + 1], *(node.module or "").split("."))
                found = [base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)]
                for file in found:
                    if file.is_file() and file.name not in harmless and here.resolve() not in file.resolve().parents:
                        assert file.resolve() in hashed, f"{path.name} imports {file}"


def test_the_store_lies_where_one_says(tmp_path, monkeypatch):
    assert cache_root(tmp_path) == tmp_path
    monkeypatch.setenv("NEURALIGN_CACHE", "/somewhere")
    assert cache_root() == Path("/somewhere")
    monkeypatch.delenv("NEURALIGN_CACHE")
    assert cache_root() == Path.home() / ".cache" / "neuralign"


def test_features_carry_times_and_what_else_is_known():
    plain = Features("net", ("a", "b"), {"x": np.zeros((2, 3))})
    assert plain.times == {} and plain.info == {}
    rich = Features("net", ("a", "b"), {"x": np.zeros((2, 3))}, {}, {}, {"x": np.arange(3)}, {"x": {"k": 1}})
    assert rich.info["x"]["k"] == 1 and list(rich.times["x"]) == [0, 1, 2]


# ------------------------------------------------------------------------------------------------ the ledger


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "pictures" / "ä picture.jpg"
    path.parent.mkdir()
    path.write_bytes(b"one")
    os.utime(path, (1000, 1000))
    return path


SHA = {
    b"one": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
    b"two": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
}


def test_a_file_that_nobody_touched_is_read_once(tmp_path, picture, monkeypatch):
    with Ledger(tmp_path) as digest:
        assert digest(picture) == SHA[b"one"]
    monkeypatch.setattr(ledger, "hash_of", None)  # calling it would fail
    with Ledger(tmp_path) as digest:
        assert digest(picture) == SHA[b"one"]


@pytest.mark.parametrize("how", ["written", "written, with its old time", "replaced, with its old time"])
def test_a_file_that_changed_is_read_again(tmp_path, picture, how):
    with Ledger(tmp_path) as digest:
        digest(picture)
    if how.startswith("replaced"):
        other = picture.with_name("other")
        other.write_bytes(b"two")
        os.utime(other, (1000, 1000))
        other.replace(picture)
    else:
        picture.write_bytes(b"two")
        if "old" in how:
            os.utime(picture, (1000, 1000))
    with Ledger(tmp_path) as digest:
        assert digest(picture) == SHA[b"two"]


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, picture):
    os.utime(picture, None)
    with Ledger(tmp_path) as digest:
        digest(picture)
    with sqlite3.connect(tmp_path / "ledger.db") as base:
        assert base.execute("SELECT count(*) FROM files").fetchone() == (0,)
    future = time.time() + 3600
    os.utime(picture, (future, future))
    with Ledger(tmp_path) as digest:
        digest(picture)
    with sqlite3.connect(tmp_path / "ledger.db") as base:
        assert base.execute("SELECT count(*) FROM files").fetchone() == (0,)


@pytest.mark.parametrize("broken", ["garbage", "a folder", "no folder"])
def test_without_its_database_every_file_is_read(tmp_path, picture, broken, caplog):
    root = tmp_path / "store"
    if broken == "garbage":
        root.mkdir()
        (root / "ledger.db").write_bytes(b"garbage" * 1000)
    elif broken == "a folder":
        (root / "ledger.db").mkdir(parents=True)
    else:
        root.write_text("a file")
    with caplog.at_level("INFO", "neuralign"), Ledger(root) as digest:
        assert digest(picture) == SHA[b"one"]
    assert "every stimulus is read" in caplog.text


def test_a_second_extraction_reads_no_stimulus_and_runs_no_model(tmp_path, monkeypatch):
    folder, store = tmp_path / "images", tmp_path / "store"
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
        os.utime(folder / f"{i}.png", (1000, 1000))
    options = {"preprocess": ImageInputs((16, 16)), "cache": store}
    first = extract(net(), StimulusSet.from_folder(folder), "0", **options)
    monkeypatch.setattr("neuralign.datasets.sources.Files.read_many", lambda _, rows: iter([1 / 0 for _ in rows]))
    monkeypatch.setattr(nn.Conv2d, "forward", None)
    second = extract(net(), StimulusSet.from_folder(folder), "0", **options)
    assert second.keys_ == first.keys_
    np.testing.assert_array_equal(second["0"], first["0"])
    monkeypatch.undo()
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes())
    assert extract(net(), StimulusSet.from_folder(folder), "0", **options).keys_ != first.keys_


def test_a_file_that_cannot_be_read_is_left_to_who_knows_its_stimulus(tmp_path):
    with Ledger(tmp_path) as digest:
        assert digest(tmp_path / "absent") is None
    (tmp_path / "a.png").write_bytes(b"")
    stimuli = StimulusSet.from_images([tmp_path / "a.png"])
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="stimulus 'a'"):
        extract(net(), stimuli, "0", preprocess=ImageInputs((16, 16)), cache=tmp_path)


def test_calls_are_remembered_by_what_they_depend_on(tmp_path):
    calls = [{"layer": "conv", "shape": [4, 3, 3]}]
    parts = {"module": "m", "inputs": {"size": (16, 16)}}
    assert recall_calls(tmp_path, parts) is None
    remember_calls(tmp_path, parts, [{"layer": "conv", "shape": (4, 3, 3)}])
    assert recall_calls(tmp_path, parts) == calls
    assert recall_calls(tmp_path, parts | {"module": "other"}) is None
    [path] = (tmp_path / "traces").rglob("*.json")
    path.write_text(path.read_text().replace("4", "5"))
    assert recall_calls(tmp_path, parts) is None
    path.write_text("{")
    assert recall_calls(tmp_path, parts) is None
    remember_calls(tmp_path, parts, calls)
    assert recall_calls(tmp_path, parts) == calls
    remember_calls(tmp_path / "traces" / path.parent.name / path.name, parts, calls)  # no folder: nothing happens


def test_hashes_of_pieces_are_hashes_of_the_whole(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.setattr(disk, "_PIECE", 7)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with path.open("rb") as file:
        for place, size in ((0, 100), (3, 20), (95, 20), (0, 0)):
            truth = hashlib.sha256(bytes(range(100))[place : place + size]).hexdigest()
            assert disk.hash_of(file.fileno(), place, size) == truth
