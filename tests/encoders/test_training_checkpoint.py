"""Training that was interrupted ends at the bits of training that was not."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from neuralign.encoders.spatial.checkpoint import Checkpoint, fingerprint

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("linear_readout", HERE / "linear_readout.py")
linear_readout = importlib.util.module_from_spec(spec)
spec.loader.exec_module(linear_readout)
LinearReadout = linear_readout.LinearReadout


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def world(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((150, 6, 4)).astype(np.float32)
    Y = X.reshape(150, -1) @ rng.standard_normal((24, 5)) + 4 * rng.standard_normal((150, 5))
    Y[rng.random(Y.shape) < 0.1] = np.nan
    return X, Y


def readout(path=None, **parameters):
    settings = {"dropout": 0.3, "lr": 1e-2, "epochs": 12, "batch_size": 40, "patience": 99, "validation": 0.2}
    return LinearReadout(checkpoint=path, **settings | parameters)


def state(encoder):
    history = encoder.history_.drop(columns="seconds").to_numpy()
    weights = [value.numpy() for value in encoder.module_.state_dict().values()]
    return [*weights, history, encoder.validation_r_]


def assert_same(one, other):
    for a, b in zip(state(one), state(other), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, after, before_the_move=False):
    """Let training break off after so many checkpoints, or in the middle of the last one."""
    save, count = Checkpoint.save, []

    def saved(self, *args):
        count.append(1)
        if before_the_move and len(count) == after:
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(Interrupted))
                save(self, *args)
        save(self, *args)
        if len(count) == after:
            raise Interrupted

    monkeypatch.setattr(Checkpoint, "save", saved)


@pytest.mark.parametrize("after", [1, 5, 11])
@pytest.mark.parametrize("before_the_move", [False, True])
def test_interrupted_training_ends_at_the_same_bits(after, before_the_move, tmp_path, monkeypatch):
    X, Y = world()
    whole = readout().fit(X, Y)
    path = tmp_path / "fit.safetensors"
    with monkeypatch.context() as patch:
        interrupt(patch, after, before_the_move)
        with pytest.raises(Interrupted):
            readout(path).fit(X, Y)
    assert path.exists() == (after > before_the_move)
    assert len(list(tmp_path.iterdir())) == path.exists()  # no half file is left
    torch.manual_seed(1234)  # nothing of the state of the process counts
    resumed = readout(path).fit(X, Y)
    assert_same(resumed, whole)
    assert np.array_equal(resumed.predict(X), whole.predict(X))


KILLED = """
import os, sys
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from neuralign.encoders.spatial.checkpoint import Checkpoint
import test_training_checkpoint as tests
save, count = Checkpoint.save, []
def saved(self, *args):
    save(self, *args)
    count.append(1)
    if len(count) == 4:
        os._exit(9)
Checkpoint.save = saved
tests.readout({path!r}).fit(*tests.world())
"""


def test_training_of_a_killed_process_ends_at_the_same_bits(tmp_path):
    path = str(tmp_path / "fit.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(here=str(HERE), path=path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 9, done.stderr.decode()
    X, Y = world()
    whole = readout().fit(X, Y)
    resumed = readout(path).fit(X, Y)
    assert_same(resumed, whole)


def test_a_finished_fit_is_only_loaded(tmp_path, monkeypatch):
    X, Y = world()
    path = tmp_path / "fit.safetensors"
    whole = readout(path).fit(X, Y)

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("neuralign.encoders.spatial.training.Trainer._one_epoch", never)
    again = readout(str(path)).fit(X, Y)
    assert_same(again, whole)
    assert np.array_equal(again.history_.seconds, whole.history_.seconds)


def test_more_epochs_go_on_from_the_last(tmp_path):
    X, Y = world()
    path = tmp_path / "fit.safetensors"
    readout(path, epochs=5).fit(X, Y)
    assert_same(readout(path, epochs=12).fit(X, Y), readout().fit(X, Y))


def test_patience_counts_over_an_interruption(tmp_path, monkeypatch):
    X, Y = world()
    whole = readout(epochs=300, patience=4, lr=0.03).fit(X, Y)
    stopped = len(whole.history_) - 1
    assert stopped < 300
    path = tmp_path / "fit.safetensors"
    with monkeypatch.context() as patch:
        interrupt(patch, stopped - 2)
        with pytest.raises(Interrupted):
            readout(path, epochs=300, patience=4, lr=0.03).fit(X, Y)
    assert_same(readout(path, epochs=300, patience=4, lr=0.03).fit(X, Y), whole)


def test_every_learning_rate_has_its_file(tmp_path, monkeypatch):
    X, Y = world()
    rates = [1e-3, 1e-2]
    whole = readout(lr=rates).fit(X, Y)
    path = tmp_path / "fit.safetensors"
    with monkeypatch.context() as patch:
        interrupt(patch, 17)  # in the middle of the second
        with pytest.raises(Interrupted):
            readout(path, lr=rates).fit(X, Y)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fit.lr-0.001.safetensors", "fit.lr-0.01.safetensors"]
    resumed = readout(path, lr=rates).fit(X, Y)
    assert_same(resumed, whole)
    assert resumed.lr_scores_ == whole.lr_scores_


def test_diverged_training_is_found_diverged_again(tmp_path):
    X, Y = world()
    path = tmp_path / "fit.safetensors"
    fits = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="training diverged in epoch 1"):
            fits.append(readout(path, lr=1e6).fit(X, Y))
    assert_same(*fits)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dropout": 0.2}, "dropout is 0.2, there it was 0.3"),
        ({"seed": 1}, "seed is 1, there it was 0"),
        ({"batch_size": 41}, "batch_size is 41, there it was 40"),
        ({"lr": 2e-2}, "lr is 0.02, there it was 0.01"),
        ({"validation": 0.3}, "rows is "),
        ({"X": 1}, "values of X is "),
        ({"Y": 1}, "values of Y is "),
        ({"n": 1}, r"shape of X is \(140, 6, 4\), there it was \(150, 6, 4\)"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(change, message, tmp_path):
    X, Y = world()
    path = tmp_path / "fit.safetensors"
    readout(path, epochs=2).fit(X, Y)
    if "X" in change:
        X = X.copy()
        X[100, 2, 1] += 1e-3
    elif "Y" in change:
        Y = Y.copy()
        Y[0, 0] = 3.0
    elif "n" in change:
        X, Y = X[:140], Y[:140]
    else:
        with pytest.raises(ValueError, match=f"is of another fit: .*{message}"):
            readout(path, **{"epochs": 2} | change).fit(X, Y)
        return
    with pytest.raises(ValueError, match=f"is of another fit: .*{message}"):
        readout(path, epochs=2).fit(X, Y)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    X, Y = world()
    path = tmp_path / "fit.safetensors"
    path.write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match=r"cannot be read .*; delete it to train anew"):
        readout(path).fit(X, Y)
    save_file({"weight": np.ones(3, np.float32)}, path)
    with pytest.raises(ValueError, match="is no checkpoint of training of this version"):
        readout(path).fit(X, Y)


def test_a_checkpoint_holds_plain_tensors(tmp_path):
    X, Y = world()
    path = tmp_path / "fit.safetensors"
    encoder = readout(path, epochs=3).fit(X, Y)
    tensors = load_file(path)
    assert {"module/weight", "module/bias", "best/weight", "best/bias", "best_r"} <= set(tensors)
    assert {f"optimiser/{i}/{name}" for i in (0, 1) for name in ("exp_avg", "exp_avg_sq", "step")} <= set(tensors)
    np.testing.assert_array_equal(tensors["best/weight"], encoder.module_.weight.detach().numpy())
    np.testing.assert_array_equal(tensors["best_r"], encoder.validation_r_)
    assert tensors["optimiser/0/step"] == 9  # three epochs of 120 rows by 40


def test_fingerprints_tell_values_shapes_and_types_apart():
    a = np.arange(6.0)
    others = [a + 1e-12, a.reshape(2, 3), a.astype(np.float32), a[:5], np.arange(6), torch.arange(6).bfloat16()]
    marks = {fingerprint([one]) for one in [a, *others]}
    assert len(marks) == 7
    assert fingerprint([a.copy()]) == fingerprint([a])
    assert fingerprint([a[::2]]) == fingerprint([a[::2].copy()])
    assert fingerprint([torch.zeros(())]) != fingerprint([torch.zeros(1)])
    assert fingerprint([np.empty((0, 3))]) != fingerprint([np.empty((3, 0))])
