"""The loop of an extraction: however it is cut, whatever fails, the features are those of a plain forward pass."""

import json
import logging
import shutil
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from neuralign.datasets import StimulusSet
from neuralign.encoders import ImageInputs, Model
from neuralign.encoders.features.engine import loader, memory, several
from neuralign.encoders.features.engine.devices import compiled, laid_out
from neuralign.encoders.features.extract import extract, gram, plan
from neuralign.encoders.features.pca import PCA
from neuralign.encoders.features.shards import Entry

READ = ImageInputs((16, 16), mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4))
LAYERS = ["conv", "body.0", "head"]


COUNTS = {"rows": 0, "room": 10**9}


class Net(nn.Module):
    """Counts the rows that go through it, and runs out of memory above `room` of them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        COUNTS["rows"] += len(x)
        if len(x) > COUNTS["room"]:
            raise RuntimeError(f"[enforce fail] DefaultCPUAllocator: can't allocate memory: {len(x)} rows")
        return self.head(self.body(self.relu(self.conv(x))).mean((2, 3)))


@pytest.fixture(autouse=True)
def counts(monkeypatch):
    """The counters are globals that the module reads, so that they would be part of its key."""
    monkeypatch.setattr("neuralign.encoders.features.engine.task.digest_of", lambda module, name: f"the net {name}")
    COUNTS.update(rows=0, room=10**9)
    return COUNTS


@pytest.fixture
def stimuli():
    pixels = np.random.default_rng(0).integers(0, 256, (23, 20, 24, 3), np.uint8)
    return StimulusSet.from_images(pixels)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model("net", Net().eval(), READ)


def plain(model, stimuli):
    """Every layer by hand, in one pass over all stimuli."""
    net = model.module
    with torch.no_grad():
        x = torch.stack([READ.read(stimuli.image(i)) for i in range(len(stimuli))])
        conv = net.conv(x)
        low = net.body[0](conv.clamp_min(0))
        head = net.head(low.clamp_min(0).mean((2, 3)))
    tokens = {"conv": conv.flatten(2).transpose(1, 2), "body.0": low.flatten(2).transpose(1, 2), "head": head}
    return {layer: value.numpy() for layer, value in tokens.items()}


def equal(features, truth, atol=2e-6):
    assert features.layers == list(truth)
    for layer, expected in truth.items():
        np.testing.assert_allclose(features[layer], expected, atol=atol, err_msg=layer)


@pytest.mark.parametrize("rows", [1, 4, 7, 23, 64])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_blocks_and_batches_do_not_change_features(model, stimuli, tmp_path, monkeypatch, rows, batch_size):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", str(rows))
    equal(extract(model, stimuli, LAYERS, batch_size=batch_size, cache=tmp_path), plain(model, stimuli))
    equal(extract(model, stimuli, LAYERS, batch_size=batch_size, cache=False), plain(model, stimuli))


def test_a_second_run_computes_nothing_and_a_new_layer_only_itself(model, stimuli, tmp_path, counts):
    first = extract(model, stimuli, LAYERS, cache=tmp_path)
    assert counts["rows"] == 2 + 23  # two of them told what layers there are
    counts["rows"] = 0
    model.module.train()
    second = extract(model, stimuli, LAYERS, cache=tmp_path)
    assert counts["rows"] == 0 and model.module.training
    for layer in first:
        assert isinstance(second[layer], np.memmap)
        np.testing.assert_array_equal(first[layer], second[layer])
    assert second.grids == first.grids == {"conv": (14, 14), "body.0": (6, 6)}
    extract(model, stimuli, [*LAYERS, "relu"], cache=tmp_path)
    assert counts["rows"] == 23


def test_shards_in_turn_fill_one_store(model, stimuli, tmp_path, counts, monkeypatch):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", "4")
    truth = plain(model, stimuli)
    first = extract(model, stimuli, LAYERS, cache=tmp_path, shard=(0, 2))
    rows = [row for row in range(23) if row // 4 % 2 == 0]
    assert first.stimulus_ids == tuple(stimuli.ids[row] for row in rows)
    equal(first, {layer: value[rows] for layer, value in truth.items()})
    counts["rows"] = 0
    second = extract(model, stimuli, LAYERS, cache=tmp_path, shard=(1, 2))
    assert counts["rows"] == 23 - len(rows)
    equal(second, truth)
    counts["rows"] = 0
    equal(extract(model, stimuli, LAYERS, cache=tmp_path), truth)
    assert counts["rows"] == 0


@pytest.mark.slow
def test_processes_on_several_devices_share_one_store(stimuli, tmp_path, monkeypatch):
    arguments = {"model": "gabor", "stimuli": stimuli, "cache": tmp_path, "reduce": "mean", "batch_size": 2}
    monkeypatch.undo()  # of the digest, which other processes know nothing of
    several.on_every(["cpu", "cpu"], extract, arguments)
    alone = extract(**{**arguments, "cache": False})
    monkeypatch.setattr("neuralign.encoders.features.extract._compute", None)  # everything is there
    equal(extract(**arguments), dict(alone), atol=1e-6)


def test_a_run_that_failed_half_way_goes_on_there(model, stimuli, tmp_path, counts, monkeypatch):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", "4")
    whole = extract(model, stimuli, LAYERS, cache=tmp_path / "whole", batch_size=4)
    forward = Net.forward

    def dies(self, x):
        if counts["rows"] >= 2 + 12:
            raise KeyboardInterrupt
        return forward(self, x)

    counts["rows"] = 0
    monkeypatch.setattr(Net, "forward", dies)
    with pytest.raises(KeyboardInterrupt):
        extract(model, stimuli, LAYERS, cache=tmp_path / "cut", batch_size=4)
    monkeypatch.setattr(Net, "forward", forward)
    counts["rows"] = 0
    found = extract(model, stimuli, LAYERS, cache=tmp_path / "cut", batch_size=4)
    assert counts["rows"] in (11, 15)  # the last full block may not have been committed yet
    for layer in whole:
        np.testing.assert_array_equal(found[layer], whole[layer])


# ------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("cache", [False, True])
def test_a_batch_that_does_not_fit_is_halved_and_said(model, stimuli, tmp_path, counts, caplog, cache):
    counts["room"] = 5
    with caplog.at_level(logging.WARNING, "neuralign"):
        found = extract(model, stimuli, LAYERS, cache=tmp_path if cache else False, batch_size=16)
    assert [r.message.partition(":")[2].partition(":")[0] for r in caplog.records] == [
        " batch_size 16 -> 8",
        " batch_size 8 -> 4",
    ]
    equal(found, plain(model, stimuli))


def test_when_not_even_one_fits_it_says_what_helps(model, stimuli, counts, monkeypatch):
    def full(self, x):
        if len(x) == 2:
            return forward(self, x)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    forward = Net.forward
    monkeypatch.setattr(Net, "forward", full)
    with pytest.raises(MemoryError, match=r"not even one stimulus .*CUDA out of memory.*reduce="):
        extract(model, stimuli, "head", cache=False, batch_size=4)


def test_other_errors_are_not_taken_for_full_memory(model, stimuli, monkeypatch):
    monkeypatch.setattr(Net, "forward", lambda self, x: self.conv(x[:, :2]))
    with pytest.raises(RuntimeError, match="channels"):
        extract(model, stimuli, "conv", cache=False)


def test_features_that_do_not_fit_are_refused_before_anything_runs(model, stimuli, tmp_path, counts, monkeypatch):
    monkeypatch.setattr("neuralign.encoders.features.engine.memory.available", lambda: 1000)
    with pytest.raises(ValueError, match=r"need .* of memory, and 1 kB are available; take reduce="):
        extract(model, stimuli, LAYERS, cache=False)
    assert counts["rows"] == 2
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10))
    with pytest.raises(ValueError, match=r"features need .*free; take reduce="):
        extract(model, stimuli, LAYERS, cache=tmp_path)
    assert not list((tmp_path / "features").rglob("data")) and counts["rows"] == 4


def test_rows_of_a_block():
    cpu = torch.device("cpu")
    assert memory.block_rows(32 * 2**10, 10**6, 64, cpu) == 1024
    assert memory.block_rows(3 * 2**20, 10**6, 64, cpu) == 10  # what fits, though a batch does not
    assert memory.block_rows(2**30, 10**6, 64, cpu) == 1
    assert memory.block_rows(4, 10**6, 48, cpu) == 8192 // 48 * 48
    assert memory.block_rows(4, 320, 10, cpu, shards=4) == 20  # so that every shard has several
    assert memory.available() > 2**20


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_stimuli(tmp_path):
    script = textwrap.dedent(
        """
        import resource, sys, numpy as np, torch
        from torch import nn
        from neuralign.datasets import StimulusSet
        from neuralign.encoders import ImageInputs, extract
        torch.set_num_threads(1)
        pixels = np.broadcast_to(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8), (1500, 32, 32, 3))
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU())
        def run(n):
            extract(net, StimulusSet.from_images(pixels[:n]), "0", preprocess=ImageInputs((32, 32)), cache=sys.argv[1],
                    batch_size=16)
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        few = run(300)
        print(few, run(1500))
        """
    )
    out = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True).stdout
    few, many = map(float, out.split())
    assert many - few < 40  # MB, while 1,200 rows more are 315 MB of features


# ---------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def files(tmp_path, stimuli):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        stimuli.image(i).save(folder / f"{i:02d}.png")
    return folder


def damage(files, *numbers):
    for number in numbers:
        path = files / f"{number:02d}.png"
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("bad", "workers"),
    [((0,), 0), ((3, 7, 11), 0), ((5,), 0), ((0, 1, 2, 3), 0), pytest.param((3, 7, 11), 2, marks=pytest.mark.slow)],
)
def test_what_cannot_be_read_is_left_out_when_asked(model, files, tmp_path, monkeypatch, bad, workers):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", "4")
    truth = plain(model, StimulusSet.from_folder(files))
    damage(files, *bad)
    stimuli = StimulusSet.from_folder(files)
    kept = [row for row in range(12) if row not in bad]
    named = ", ".join(f"'{row:02d}'" for row in bad)
    for cache in (tmp_path / "store", tmp_path / "store", False):
        with pytest.warns(UserWarning, match=rf"{len(bad)} of 12 stimuli cannot be read and are left out: {named}\."):
            found = extract(model, stimuli, LAYERS, cache=cache, on_error="skip", workers=workers)
        assert found.stimulus_ids == tuple(f"{row:02d}" for row in kept)
        equal(found, {layer: value[kept] for layer, value in truth.items()})
    with pytest.raises(ValueError, match=rf"stimulus '{bad[0]:02d}' .* cannot be read"):
        extract(model, stimuli, LAYERS, cache=tmp_path / "store")


def test_what_was_left_out_is_tried_again(model, files, tmp_path, counts, monkeypatch):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", "4")
    whole = StimulusSet.from_folder(files)
    monkeypatch.setattr(StimulusSet, "content_hash", "the same")  # as if a disk had been away for a while
    read = ImageInputs.decode

    def away(self, stimuli, rows):
        if 5 in rows:
            raise ValueError("stimulus '05' cannot be read")
        return read(self, stimuli, rows)

    monkeypatch.setattr(ImageInputs, "decode", away)
    with pytest.warns(UserWarning, match="'05'"):
        assert len(extract(model, whole, LAYERS, cache=tmp_path, on_error="skip").stimulus_ids) == 11
    monkeypatch.setattr(ImageInputs, "decode", read)
    counts["rows"] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = extract(model, whole, LAYERS, cache=tmp_path, on_error="skip")
    assert counts["rows"] == 4
    equal(found, plain(model, whole))


def test_readers_that_do_not_decode_leave_out_too(model, files):
    def read(image):
        return READ.read(image)

    truth = plain(model, StimulusSet.from_folder(files))
    damage(files, 2, 9)
    kept = [row for row in range(12) if row not in (2, 9)]
    with pytest.warns(UserWarning, match="2 of 12 stimuli cannot be read"):
        found = extract(model.module, StimulusSet.from_folder(files), LAYERS, preprocess=read, cache=False,
                        on_error="skip", batch_size=4)  # fmt: skip
    equal(found, {layer: value[kept] for layer, value in truth.items()})


def test_several_that_cannot_be_read_are_counted(model, files):
    damage(files, 3, 7, 8)
    with pytest.raises(ValueError, match=r"'03'.*cannot be read.*So are 2 more of the 12 .* on_error='skip'"):
        extract(model, StimulusSet.from_folder(files), LAYERS, cache=False)
    damage(files, *range(12))
    with pytest.raises(ValueError, match=r"'00|'11"):
        extract(model, StimulusSet.from_folder(files), LAYERS, cache=False, on_error="skip")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_and_its_block_not_kept(model, stimuli, tmp_path, monkeypatch, value):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", "8")
    third = READ.read(stimuli.image(18))
    forward = Net.forward

    def breaks(self, x):
        bad = (x - third).abs().flatten(1).amax(1) < 1e-6
        return forward(self, torch.where(bad[:, None, None, None], value, x))

    monkeypatch.setattr(Net, "forward", breaks)
    with pytest.raises(ValueError, match=r"layer 'head' of net is NaN or infinite for 1 of 7 stimuli .*'image-00019'"):
        extract(model, stimuli, "head", cache=tmp_path)
    [entry] = (tmp_path / "features").rglob("entry.json")
    assert Entry(tmp_path, entry.parent.name).done() == {0, 1}


def test_what_float16_cannot_hold_is_refused(model, stimuli):
    found = extract(model, stimuli, LAYERS, cache=False, dtype="float16")
    assert {found[layer].dtype.name for layer in found} == {"float16"}
    equal(found, plain(model, stimuli), atol=5e-3)
    with torch.no_grad():
        model.module.head.bias[2] = 7e4
    with pytest.raises(ValueError, match=r"'head' of net is beyond 65504.*23 of 23.*'image-00001'.*dtype='float32'"):
        extract(model, stimuli, "head", cache=False, dtype="float16")
    assert extract(model, stimuli, "head", cache=False)["head"][:, 2].min() > 65504


def test_float16_features_score_as_the_same_numbers_in_float32(stimuli):
    from neuralign import align
    from neuralign.datasets.arrays import from_arrays

    draw = np.random.default_rng(1)
    shown = StimulusSet.from_images(draw.integers(0, 256, (40, 24, 24, 3), np.uint8))
    half = extract("gabor", shown, reduce=4, cache=False, dtype="float16")
    same = replace(half, arrays={layer: array.astype(np.float32) for layer, array in half.items()})
    units = same["energy"].reshape(40, -1)[:, :8]
    brain = from_arrays(units + units.std(0) * draw.standard_normal(units.shape), stimuli=shown)
    for score in (align.score, align.rsa):
        one, other = (score(f, brain, bootstrap=0, permutations=0)["score"].to_numpy(float) for f in (same, half))
        np.testing.assert_allclose(other, one, atol=1e-5)
        assert np.abs(one).max() > 0.01  # not two zeros


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float61"}, "dtype='float61' is unknown; did you mean"),
        ({"precision": "bfloat61"}, "precision='bfloat61' is unknown; did you mean 'bfloat16'"),
        ({"on_error": "skp"}, "on_error='skp' is unknown; did you mean 'skip'"),
        ({"workers": -1}, "workers=-1; expected a whole number"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\); expected \(i, n\)"),
        ({"shard": (0, 2)}, "jobs share a store"),
        ({"context": (1, 2)}, r"context=\(1, 2\) is read by language models only"),
        ({"device": "cuda:all"}, "leave cache=False and shard out"),
    ],
)
def test_arguments(model, stimuli, options, message):
    with pytest.raises(ValueError, match=message):
        extract(model, stimuli, LAYERS, cache=False, **options)


def test_block_rows_of_the_environment(model, stimuli, monkeypatch):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", "many")
    with pytest.raises(ValueError, match="NEURALIGN_BLOCK_ROWS='many'"):
        extract(model, stimuli, LAYERS, cache=False)


# ---------------------------------------------------------------------------------- how it is run and read


def test_lower_precision_is_close_and_has_another_key(model, stimuli, tmp_path):
    full = extract(model, stimuli, LAYERS, cache=tmp_path)
    low = extract(model, stimuli, LAYERS, cache=tmp_path, precision="bfloat16")
    half = extract(model, stimuli, LAYERS, cache=tmp_path, dtype="float16")
    for layer in LAYERS:
        assert low[layer].dtype == np.float32
        error = np.abs(low[layer] - full[layer]).max()
        assert 0 < error < 0.03 * np.abs(full[layer]).max()
        assert len({run.keys_[layer] for run in (full, low, half)}) == 3


@pytest.mark.slow
def test_processes_that_decode_give_the_same(model, files, tmp_path):
    stimuli = StimulusSet.from_folder(files)
    equal(extract(model, stimuli, LAYERS, cache=False, workers=2, batch_size=5), plain(model, stimuli))


def test_what_depends_on_all_stimuli_is_read_as_a_whole(stimuli, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", "4")
    table = pd.DataFrame({"kind": [f"kind {i % 7}" for i in range(23)], "size": np.arange(23.0)})
    annotated = StimulusSet.from_images(stimuli.images(), table=table)
    whole = extract("annotations", annotated, cache=tmp_path)["annotations"]
    truth = np.column_stack([np.arange(23), np.eye(7)[np.arange(23) % 7]])
    np.testing.assert_allclose(whole, truth)
    with pytest.raises(ValueError, match="reads all stimuli together"):
        extract("annotations", annotated, cache=tmp_path, on_error="skip")


class Shuffled:
    """Inputs in an order of their own, over the ends of blocks, as text by length."""

    def batches(self, stimuli, size):
        order = np.random.default_rng(0).permutation(len(stimuli)).tolist()
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, {"x": torch.stack([READ.read(stimuli.image(row)) for row in rows])}

    def spec(self):
        return {"reader": "shuffled"}

    def digest(self, stimuli):
        return stimuli.content_hash


def test_batches_in_any_order_fill_every_block(model, stimuli, tmp_path, monkeypatch, counts):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", "4")
    shuffled = Model("net", model.module, Shuffled())
    for cache in (tmp_path, False):
        equal(extract(shuffled, stimuli, LAYERS, cache=cache, batch_size=5), plain(model, stimuli))
    counts["rows"] = 0
    equal(extract(shuffled, stimuli, LAYERS, cache=tmp_path, batch_size=5), plain(model, stimuli))
    assert counts["rows"] == 0


class Words:
    """Rows that are words, two of them in a window of three tokens."""

    undefined = {"head": "it is the first"}  # noqa: RUF012

    def batches(self, stimuli, size, rows=None):
        for row in range(len(stimuli)) if rows is None else rows:
            x = READ.read(stimuli.image(row))
            yield [row], {"x": torch.stack([x, x.flip(2)]), "index": torch.tensor([[1]])}

    def gather(self, layer, output, index):
        found = output[index[:, 0]]
        return torch.where(found == found, torch.nan, found) if layer == "head" else found

    def row_shape(self, layer, shape):
        return shape

    def spec(self):
        return {}

    def digest(self, stimuli):
        return stimuli.content_hash


def test_rows_are_gathered_from_windows(model, stimuli, tmp_path):
    with pytest.warns(UserWarning, match=r"'head' of net is NaN for 23 of 23 stimuli .*it is the first"):
        found = extract(Model("net", model.module, Words()), stimuli, LAYERS, cache=tmp_path)
    flipped = StimulusSet.from_images(stimuli.images()[:, :, ::-1])
    truth = plain(model, flipped)
    np.testing.assert_allclose(found["conv"], truth["conv"], atol=2e-2)  # resizing is not quite symmetric
    assert np.isnan(found["head"]).all()


def test_convolutions_run_channels_last_and_come_back_as_they_were(model):
    with laid_out(model.module) as layout:
        assert layout is torch.channels_last
        assert model.module.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.module.conv.weight.is_contiguous()
    attends = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3), "b": nn.MultiheadAttention(4, 2)})
    with laid_out(attends) as layout:
        assert layout is torch.contiguous_format and attends["a"].weight.is_contiguous()


def test_parts_between_hooks_are_compiled(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "compile", lambda forward, **_: made.append(forward.__self__) or forward)
    net = Net()
    with compiled(net, {"body.0", "output"}):
        assert made == [net.conv, net.relu, net.body[0], net.body[1], net.head]
    assert not any("forward" in vars(part) for part in net.modules())


@pytest.mark.slow
def test_compiled_features_are_the_same(model, stimuli):
    found = extract(model, stimuli, LAYERS, cache=False, compile=True, batch_size=8)
    equal(found, plain(model, stimuli), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_equals_cpu(model, stimuli, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", "4")
    truth = plain(model, stimuli)
    equal(extract(model, stimuli, LAYERS, device="cuda", precision="float32", cache=tmp_path), truth, atol=1e-5)
    low = extract(model, stimuli, LAYERS, device="cuda", cache=tmp_path)
    equal(low, truth, atol=0.05)
    assert low.keys_ != extract(model, stimuli, LAYERS, device="cuda", precision="float32", cache=tmp_path).keys_


# ------------------------------------------------------------------------------------------------ the plan


def test_a_plan_says_what_a_run_then_does(model, stimuli, tmp_path, counts, monkeypatch):
    monkeypatch.setenv("NEURALIGN_BLOCK_ROWS", "4")
    before = plan(model, stimuli, LAYERS, cache=tmp_path)
    assert not list(tmp_path.rglob("entry.json")) and counts["rows"] == 4
    assert before.layers["state"].tolist() == ["missing"] * 3
    assert before.layers["shape"].tolist() == [(196, 6), (36, 8), (5,)]
    assert before.bytes_on_disk == before.layers["bytes"].sum() == 23 * 4 * (196 * 6 + 36 * 8 + 5)
    assert 0 < before.seconds < 60
    extract(model, stimuli, LAYERS[:2], cache=tmp_path)
    written = sum(path.stat().st_size for path in tmp_path.rglob("data"))
    assert written == before.layers["bytes"][:2].sum()
    extract(model, stimuli, LAYERS[2:], cache=tmp_path, shard=(0, 2))
    counts["rows"] = 0
    after = plan(model, stimuli, LAYERS, cache=tmp_path)
    assert after.layers["state"].tolist() == ["hit", "hit", "partial"]
    assert after.bytes_on_disk == 0
    extract(model, stimuli, LAYERS, cache=tmp_path)
    counts["rows"] = 0
    done = plan(model, stimuli, LAYERS, cache=tmp_path)
    assert counts["rows"] == 0 and done.seconds is None
    assert "net: 23 stimuli" in str(done) and "196 x 6" in str(done) and "0 B to write" in str(done)
    kept = plan(model, stimuli, LAYERS, cache=False, dtype="float16")
    assert kept.bytes_on_disk == 0 and kept.bytes_in_memory > before.bytes_on_disk / 2
    assert "kept in memory" in str(kept)


def test_components_are_fitted_on_the_named_stimuli_alone(model, stimuli, tmp_path):
    train = stimuli.ids[:15]
    truth = plain(model, stimuli)["conv"].reshape(23, -1).astype(float)
    mean = truth[:15].mean(0)
    axes = np.linalg.svd(truth[:15] - mean, full_matrices=False)[2][:4]
    for cache in (tmp_path, tmp_path, False):
        found = extract(model, stimuli, "conv", PCA(4, fit_on=train), cache=cache)
        assert found["conv"].shape == (23, 4) and found.info["conv"]["fit_rows"] == 15
        np.testing.assert_allclose(np.abs(found["conv"]), np.abs((truth - mean) @ axes.T), atol=2e-4)
    other = extract(model, stimuli, "conv", PCA(4, fit_on=stimuli.ids[:16]), cache=tmp_path)
    assert other.keys_ != extract(model, stimuli, "conv", PCA(4, fit_on=train), cache=tmp_path).keys_
    assert plan(model, stimuli, "conv", PCA(5, fit_on=train), cache=tmp_path).layers["shape"].tolist() == [(5,)]
    assert not list(tmp_path.glob(".scratch-*"))


@pytest.mark.parametrize("centre", [False, True])
def test_gram_is_that_of_whole_layers_and_is_found_again(model, stimuli, tmp_path, counts, centre):
    truth = {layer: value.reshape(23, -1).astype(float) for layer, value in plain(model, stimuli).items()}
    found = gram(model, stimuli, LAYERS, centre=centre, cache=tmp_path)
    for layer, rows in truth.items():
        rows = rows - rows.mean(0) if centre else rows
        np.testing.assert_allclose(found[layer], rows @ rows.T, atol=1e-5 * np.abs(rows @ rows.T).max())
    counts["rows"] = 0
    again = gram(model, stimuli, LAYERS, centre=centre, cache=tmp_path)
    assert counts["rows"] == 0 and not list(tmp_path.glob(".scratch-*"))
    np.testing.assert_array_equal(again["conv"], found["conv"])
    in_memory = gram(model, stimuli, LAYERS, centre=centre, cache=False)
    np.testing.assert_allclose(in_memory["conv"], found["conv"], rtol=1e-4, atol=1e-3)
    with pytest.raises(TypeError):
        gram(model, stimuli, LAYERS, reduce="mean")


# -------------------------------------------------------------------------------------------------- loader


def test_the_thread_ahead_ends_with_its_reader_and_hands_over_errors():
    closed = []

    def numbers():
        try:
            yield from range(100)
        finally:
            closed.append(1)

    ahead = loader.prefetched(numbers())
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    ahead.close()
    assert closed == [1]

    def fails():
        yield 1
        raise ZeroDivisionError("on the way")

    ahead = loader.prefetched(fails())
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError, match="on the way"):
        next(ahead)


def test_command(files, tmp_path, monkeypatch, capsys):
    import typer

    from neuralign.extract_cli import extract as command

    app = typer.Typer()
    app.command()(command)

    def call(*arguments):
        app(["pixels", str(files), "--reduce", "mean", "--cache", str(tmp_path / "store"), *arguments],
            standalone_mode=False)  # fmt: skip
        return capsys.readouterr().out

    assert "missing" in call("--dry-run") and not list(tmp_path.rglob("data"))
    [record] = json.loads(call("--json"))
    assert record["shape"] == "12 x 3" and len(record["key"]) == 64
    assert "hit" in call("--dry-run") and "pixels" in call()
    with pytest.raises(ValueError, match=r"--shard '3/2': expected I/N"):
        call("--shard", "3/2")
