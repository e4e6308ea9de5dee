import multiprocessing
import pickle
import sys
import warnings
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from neuralign.datasets.recording import Recording
from neuralign.encoders.linear import scale_out
from neuralign.encoders.linear.assemble import fit_units
from neuralign.encoders.linear.responses import Responses
from neuralign.encoders.linear.ridge import RidgeCV
from neuralign.encoders.linear.scale_out import describe, run_block, runner
from neuralign.encoders.linear.stream import BlockFitter, Plan, Task

N, V, WIDTH = 80, 50, 8  # blocks of 8 units: 7, the last one narrower
# Carries out a task, but once, at the block that starts at unit `start`, kills its process before it can hand it back.
KILLER = """
import os
import signal

def killing(flag, start, function, design, source, part, *rest):
    result = function(design, source, part, *rest)
    if part.start == start:
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return result
        os.kill(os.getpid(), signal.SIGKILL)
    return result
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killer")
    (folder / "killer.py").write_text(KILLER)
    sys.path.insert(0, str(folder))  # new processes take it over
    import killer

    yield killer.killing
    sys.path.remove(str(folder))


def process_pool():
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(2, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,))


@pytest.fixture(scope="module")
def pool(killer):
    with process_pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def dask_client(killer):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def simulate(dtype=np.float32, seed=0, p=12):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, p)).astype(dtype)
    Y = X @ rng.standard_normal((p, V)).astype(dtype) + 3 * rng.standard_normal((N, V)).astype(dtype)
    Y[3, 17] = np.nan
    Y[:, 30] = 2.0
    return X, Y


def fit(X, Y, run=None, per_unit=True, plan=None, nested=True, index=None):
    design = RidgeCV(nested=nested).design(X)
    task = Task(np.logspace(-1, 3, 5), "r", plan or Plan("fractions", X.shape[1] > N), True, True)
    chosen = {} if run is None else {"run": run}
    return fit_units(design, Responses(Y), task, WIDTH, per_unit=per_unit, index=index, **chosen)


def scaled(executor, X, Y, folder=None, **options):
    with runner(executor, folder) as run:
        return fit(X, Y, run, **options)


def require_same(a, b):
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y, err_msg=field.name)


class AtOnce:
    """As submitit's executors: `submit` gives a job that has a result, and no future."""

    class Job:
        def __init__(self, call):
            self.call = call

        def result(self):
            function, *arguments = pickle.loads(self.call)
            return function(*arguments)

    def __init__(self):
        self.parts, self.sizes = [], []

    def submit(self, function, *arguments):
        self.parts.append(arguments[2].start)
        call = pickle.dumps((function, *arguments))
        self.sizes.append(len(call))
        return self.Job(call)


class Failing(AtOnce):
    """Loses the block that starts at a unit, as often as it is told, by one kind of error."""

    def __init__(self, start, times, error):
        super().__init__()
        self.start, self.left, self.error = start, times, error

    def submit(self, function, *arguments):
        job = super().submit(function, *arguments)
        if arguments[2].start == self.start and self.left:
            self.left -= 1
            job.result = self.fail
        return job

    def fail(self):
        raise self.error


class KillingExecutor:
    """Any executor, with one task that kills its worker."""

    def __init__(self, executor, killing, flag):
        self.executor, self.killing, self.flag = executor, killing, flag

    def submit(self, function, *arguments):
        return self.executor.submit(self.killing, str(self.flag), 3 * WIDTH, function, *arguments)


@pytest.fixture
def fitted_blocks(monkeypatch):
    """Blocks computed in this process, by their first unit."""
    starts = []
    fit_block = BlockFitter.fit

    def counted(self, values, part, index=None):
        starts.append(part.start)
        return fit_block(self, values, part, index)

    monkeypatch.setattr(BlockFitter, "fit", counted)
    return starts


# The same numbers


@pytest.mark.parametrize("p", [12, 120])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_process_pool_equals_one_process(pool, dtype, p):
    X, Y = simulate(dtype, p=p)
    require_same(fit(X, Y), scaled(pool, X, Y))


@pytest.mark.parametrize("p", [12, 120])
def test_a_dask_cluster_equals_one_process(dask_client, p):
    X, Y = simulate(p=p)
    require_same(fit(X, Y), scaled(dask_client.get_executor(), X, Y))
    require_same(fit(X, Y), scaled(dask_client, X, Y))


@pytest.mark.parametrize(
    "options",
    [
        {"per_unit": False},
        {"plan": Plan("prediction", True)},
        {"plan": Plan("held-out", True), "nested": False},
        {"index": np.arange(V) % 5},
    ],
    ids=str,
)
def test_every_way_to_fit_scales_out(options, tmp_path):
    X, Y = simulate(p=120)
    expected = fit(X, Y, **options)
    with ThreadPoolExecutor(3) as threads:
        require_same(expected, scaled(threads, X, Y, **options))
        require_same(expected, scaled(threads, X, Y, tmp_path, **options))
    require_same(expected, scaled(AtOnce(), X, Y, **options))


# Where responses are


def test_files_of_responses_travel_by_name(tmp_path, pool):
    X, Y = simulate(p=200)
    expected = fit(X, Y)
    np.save(tmp_path / "c.npy", Y)
    np.save(tmp_path / "f.npy", np.asfortranarray(Y))
    raw = np.memmap(tmp_path / "raw", np.float32, "w+", 64, Y.shape)
    raw[:] = Y
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file.create_dataset("a/Y", data=Y, chunks=(N, 4))
    with h5py.File(tmp_path / "file.h5", "r") as file:
        sources = {
            "npy": np.load(tmp_path / "c.npy", mmap_mode="r"),
            "npy, Fortran": np.load(tmp_path / "f.npy", mmap_mode="r"),
            "memory map with an offset": raw,
            "hdf5": file["a/Y"],
        }
        units = pd.DataFrame({"region": ["V1"] * V})
        presentations = pd.DataFrame({"stimulus": [str(i) for i in range(N)]})
        sources["recording"] = Recording(file["a/Y"], presentations, units)
        for name, source in sources.items():
            described = describe(Responses(source))
            assert described is not None, name
            for part in (slice(0, 8), slice(44, 50)):
                np.testing.assert_array_equal(pickle.loads(pickle.dumps(described)).read(part), Y[:, part])
            executor = AtOnce()
            require_same(fit(X, source), scaled(executor, X, source))
            require_same(expected, scaled(pool, X, source))
            assert max(executor.sizes) < N * WIDTH * 4, name


def test_a_recording_of_short_numbers_is_read_as_here(tmp_path):
    X, Y = simulate()
    halves = np.round(np.nan_to_num(Y) * 8).astype(np.int16)
    np.save(tmp_path / "y.npy", halves)
    units, presentations = pd.DataFrame(index=range(V)), pd.DataFrame({"stimulus": [str(i) for i in range(N)]})
    recording = Recording(np.load(tmp_path / "y.npy", mmap_mode="r"), presentations, units)
    described = describe(Responses(recording))
    read = Responses(recording).read(slice(3, 9))
    assert described.read(slice(3, 9)).dtype == read.dtype == np.float32
    np.testing.assert_array_equal(described.read(slice(3, 9)), read)
    require_same(fit(X, recording), scaled(AtOnce(), X, recording))


def test_what_is_not_in_a_file_for_others_travels_by_value(tmp_path):
    X, Y = simulate()
    np.save(tmp_path / "y.npy", Y)
    whole = np.load(tmp_path / "y.npy", mmap_mode="r")
    private = np.load(tmp_path / "y.npy", mmap_mode="c")
    private[0] += 1  # in this process alone
    with (
        h5py.File(tmp_path / "open.h5", "w") as being_written,
        h5py.File("memory.h5", "w", driver="core", backing_store=False) as in_memory,
    ):
        for file in (being_written, in_memory):
            file["Y"] = Y
        for source in (Y, whole[:, 2:], whole[5:], private, being_written["Y"], in_memory["Y"]):
            assert describe(Responses(source)) is None
            rows = len(source)
            require_same(fit(X[:rows], source), scaled(AtOnce(), X[:rows], source))


def test_few_blocks_are_in_flight():
    X, Y = simulate()
    unread = []

    class Busy(AtOnce):
        _max_workers = 2

        def submit(self, function, *arguments):
            job = super().submit(function, *arguments)
            unread.append(job)
            assert len(unread) <= 4
            result = job.result
            job.result = lambda: unread.remove(job) or result()
            return job

    executor = Busy()
    require_same(fit(X, Y), scaled(executor, X, Y))
    assert executor.parts == list(range(0, V, WIDTH))


# Workers that die


def killed(executor, killing, tmp_path, folder, expected_warning):
    X, Y = simulate()
    flag = tmp_path / "killed"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = scaled(KillingExecutor(executor, killing, flag), X, Y, folder)
    assert flag.exists()
    lost = [str(one.message) for one in caught if "worker was lost" in str(one.message)]
    assert len(lost) == expected_warning
    require_same(fit(X, Y), found)


@pytest.mark.parametrize("resumes", [False, True])
def test_killing_a_process_of_a_pool_loses_nothing(killer, tmp_path, resumes):
    with process_pool() as pool:
        killed(pool, killer, tmp_path, tmp_path / "folder" if resumes else None, 1)


def test_killing_a_worker_of_dask_loses_nothing(dask_client, killer, tmp_path):
    killed(dask_client.get_executor(), killer, tmp_path, None, 0)  # Dask itself starts another worker


@pytest.mark.slow
def test_a_worker_that_dask_gives_up_on_loses_nothing(killer, tmp_path):
    distributed = pytest.importorskip("distributed")
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        killed(client.get_executor(), killer, tmp_path, None, 1)


class UncompletedJobError(Exception):
    """Of the name that submitit's has."""


@pytest.mark.parametrize("error", [BrokenProcessPool("gone"), CancelledError(), UncompletedJobError("gone")], ids=repr)
@pytest.mark.parametrize(("times", "here"), [(1, []), (2, [16])])
def test_a_lost_block_is_submitted_again_and_then_computed_here(error, times, here, monkeypatch):
    X, Y = simulate()
    executor = Failing(16, times, error)
    in_this_process = []
    finished = scale_out._finished

    def noted(fitter, design, values, part, index):
        if sys._getframe(1).f_code.co_name != "run_block":
            in_this_process.append(part.start)
        return finished(fitter, design, values, part, index)

    monkeypatch.setattr(scale_out, "_finished", noted)
    with pytest.warns(UserWarning, match="a worker was lost") as caught:
        found = scaled(executor, X, Y)
    assert len([one for one in caught if "worker was lost" in str(one.message)]) == 1
    require_same(fit(X, Y), found)
    assert executor.parts.count(16) == 2
    assert in_this_process == here


def test_tickets_tell_submissions_apart():
    X, Y = simulate()
    tickets = []

    class Noting(Failing):
        def submit(self, function, *arguments):
            tickets.append(arguments[-1])
            return super().submit(function, *arguments)

    with pytest.warns(UserWarning, match="a worker was lost"):
        scaled(Noting(16, 1, CancelledError()), X, Y)
    assert len(tickets) == len(set(tickets)) == 8


def test_errors_of_a_task_are_raised_as_they_are(pool, dask_client):
    X, Y = simulate()
    Y[5, 21] = np.inf
    for executor in (pool, dask_client, AtOnce()):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            with pytest.raises(ValueError, match="Y contains infinity in unit 21"):
                scaled(executor, X, Y)
    X, Y = simulate()
    require_same(fit(X, Y), scaled(pool, X, Y))  # and the executor lives on


def test_what_is_under_way_is_cancelled_when_a_fit_fails():
    X, Y = simulate()
    cancelled = []

    class Slow:
        def submit(self, function, design, source, part, *rest):
            future = Future()
            if part.start == 0:
                future.set_exception(ZeroDivisionError("of a task"))
            future.add_done_callback(lambda done: done.cancelled() and cancelled.append(part.start))
            return future

    with pytest.raises(ZeroDivisionError, match="of a task"):
        scaled(Slow(), X, Y)
    assert cancelled == list(range(8, V, 8))


# Fits that resume


class Interrupted(Failing):
    def __init__(self, start):
        super().__init__(start, 1, KeyboardInterrupt())


@pytest.mark.parametrize("through", ["executor", "this process"])
def test_an_interrupted_fit_computes_only_what_is_missing(through, tmp_path, fitted_blocks, monkeypatch):
    X, Y = simulate()
    expected = fit(X, Y)
    with pytest.raises(KeyboardInterrupt):
        scaled(Interrupted(24), X, Y, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    kept = {path.name for path in folder.iterdir()}
    assert len([name for name in kept if name.startswith("block-")]) == 3
    fitted_blocks.clear()

    def eigh(*args, **kwargs):
        raise AssertionError("decomposed again")

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    found = scaled(AtOnce() if through == "executor" else None, X.copy(), Y.copy(), folder)
    assert fitted_blocks == [24, 32, 40, 48]
    require_same(expected, found)
    left = [path.name for path in folder.iterdir()]
    assert len(left) == 1  # blocks of a whole fit are gone, and the design serves the next
    assert left[0].startswith("design-")
    fitted_blocks.clear()
    other = scaled(None, X, Y[:, ::-1], folder)
    np.testing.assert_array_equal(other.alpha[:10], expected.alpha[:-11:-1])
    assert len(fitted_blocks) == 7
    assert [path.name for path in folder.iterdir()] == left


def test_nothing_stale_is_read(tmp_path, fitted_blocks):
    X, Y = simulate()

    def interrupted():
        with pytest.raises(KeyboardInterrupt):
            scaled(Interrupted(24), X, Y, tmp_path)
        fitted_blocks.clear()

    interrupted()
    changed = Y.copy()
    changed[11, 9] += 1e-3  # in the second block
    found = scaled(AtOnce(), X, changed, tmp_path)
    assert fitted_blocks == [8, 24, 32, 40, 48]
    require_same(fit(X, changed), found)

    interrupted()
    other = X.copy()
    other[0, 0] += 1e-3
    fitted_blocks.clear()
    found = scaled(AtOnce(), other, Y, tmp_path)
    assert len(fitted_blocks) == 7
    require_same(fit(other, Y), found)

    interrupted()
    found = scaled(AtOnce(), X, Y, tmp_path, plan=Plan("prediction", False))
    assert len(fitted_blocks) == 7
    require_same(fit(X, Y, plan=Plan("prediction", False)), found)

    with pytest.raises(KeyboardInterrupt):
        scaled(Interrupted(24), X, Y, tmp_path, index=np.zeros(V, dtype=int))
    at = np.zeros(V, dtype=int)
    at[12] = 2
    fitted_blocks.clear()
    found = scaled(AtOnce(), X, Y, tmp_path, index=at)
    assert fitted_blocks == [8, 24, 32, 40, 48]
    require_same(fit(X, Y, index=at), found)


def test_files_that_change_under_their_name_are_not_stale(tmp_path, fitted_blocks):
    X, Y = simulate()
    path = tmp_path / "y.npy"
    np.save(path, Y)
    with pytest.raises(KeyboardInterrupt):
        scaled(Interrupted(24), X, np.load(path, mmap_mode="r"), tmp_path)
    changed = Y.copy()
    changed[:, 0] = changed[::-1, 0]
    np.save(path, changed)
    fitted_blocks.clear()
    found = scaled(AtOnce(), X, np.load(path, mmap_mode="r"), tmp_path)
    assert fitted_blocks == [0, 24, 32, 40, 48]
    require_same(fit(X, changed), found)


def test_damaged_files_are_made_again(tmp_path, fitted_blocks):
    X, Y = simulate()
    with pytest.raises(KeyboardInterrupt):
        scaled(Interrupted(24), X, Y, tmp_path)
    damaged = sorted(tmp_path.glob("block-*"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    fitted_blocks.clear()
    require_same(fit(X, Y), scaled(AtOnce(), X, Y, tmp_path))
    assert len(fitted_blocks) == 7 + 5  # the plain fit, and five of seven blocks
    (design,) = tmp_path.glob("design-*")
    design.write_bytes(b"cut off")
    require_same(fit(X, Y), scaled(AtOnce(), X, Y, tmp_path))


def test_one_penalty_for_all_resumes_in_its_second_pass(tmp_path, fitted_blocks):
    X, Y = simulate()
    expected = fit(X, Y, per_unit=False)

    class Second(AtOnce):
        def submit(self, function, *arguments):
            if arguments[4] is not None and arguments[2].start == 16:
                raise KeyboardInterrupt
            return super().submit(function, *arguments)

    executor = Second()
    executor._max_workers = 1
    with pytest.raises(KeyboardInterrupt):
        scaled(executor, X, Y, tmp_path, per_unit=False)
    fitted_blocks.clear()
    require_same(expected, scaled(AtOnce(), X, Y, tmp_path, per_unit=False))
    assert 0 < len(fitted_blocks) <= 7  # nothing of the first pass


# What is refused


def test_executors_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="executor=8: expected an object with submit"), runner(8):
        pass
    fork = multiprocessing.get_context("fork")
    with (
        ProcessPoolExecutor(1, mp_context=fork) as pool,
        pytest.raises(ValueError, match=r"get_context\('spawn'\)"),
        runner(pool),
    ):
        pass


def test_a_worker_that_cannot_see_the_design_says_so(tmp_path):
    shelved = scale_out.Shelved(str(tmp_path / "none.pt"), False)
    task = Task(np.ones(1), "r", Plan("fractions", False), False, False)
    with pytest.raises(FileNotFoundError, match="a folder on a file system that all workers share"):
        run_block(shelved, np.zeros((3, 2)), slice(0, 2), task, None, "")


def test_without_executor_and_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    X, Y = simulate()
    require_same(fit(X, Y), scaled(None, X, Y))
    require_same(fit(X, Y), scaled(AtOnce(), X, Y))
    assert list(tmp_path.iterdir()) == []
