import pickle
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

from neuralign.encoders.linear import design_file
from neuralign.encoders.linear.assemble import fit_units
from neuralign.encoders.linear.delays import Delays
from neuralign.encoders.linear.design import SpectralDesign
from neuralign.encoders.linear.design_file import inputs_digest, load_design, save_design
from neuralign.encoders.linear.folds import fold_rows
from neuralign.encoders.linear.kernel import KernelRidgeCV
from neuralign.encoders.linear.responses import Responses
from neuralign.encoders.linear.ridge import RidgeCV
from neuralign.encoders.linear.stream import Plan, Task

pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")

ALPHAS = np.logspace(-1, 3, 5)


def features(n=60, p=8, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((n, p)).astype(dtype)


def responses(X, v=6, seed=1):
    rng = np.random.default_rng(seed)
    return X @ rng.standard_normal((X.shape[1], v)).astype(X.dtype) + rng.standard_normal((len(X), v)).astype(X.dtype)


def make(kind):
    """A design, and the plans that it may be met by."""
    X = features()
    rows = np.empty((60, 1))
    if kind == "primal":
        return RidgeCV(standardise=True, nested=True).design(X), [Plan("fractions", False), Plan("prediction", True)]
    if kind == "dual":
        return RidgeCV().design(features(p=90)), [Plan("fractions", True), Plan("held-out", True)]
    if kind == "delayed":
        groups = np.repeat([0, 1, 2], 20)
        delayed = Delays([0, 1, 2]).apply(X, groups, device="cpu")
        return RidgeCV(cv=3).design(delayed, groups), [Plan("fractions", False)]
    if kind == "one-hot":  # eigenvalues that are equal turn axes
        return RidgeCV().design(np.eye(6)[np.arange(60) % 6]), [Plan("fractions", True)]
    if kind == "uneven folds":  # a layout for each fold
        rng = np.random.default_rng(3)
        cv = [(np.sort(order[12:]), np.sort(order[:12])) for order in (rng.permutation(60) for _ in range(6))]
        return RidgeCV(cv=cv).design(X), [Plan("fractions", False)]
    if kind == "kernel":
        kernel = torch.from_numpy(X.astype(np.float64) @ X.T)
        design = SpectralDesign(None, fold_rows(5, rows, rows, None), kernel=kernel, dtype=torch.float32)
        return design, [Plan("fractions", True)]
    return KernelRidgeCV(kernel="rbf").design(X), [Plan("fractions", True)]


KINDS = ["primal", "dual", "delayed", "one-hot", "uneven folds", "kernel", "rbf"]


def fitted(design, plan, Y):
    task = Task(ALPHAS, "r", plan, True, True)
    return fit_units(design, Responses(Y), task, 4, per_unit=True)


def require_same(a, b, where="design"):
    """Every member of one is that of the other, bit for bit, in the same layout in memory."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride(), where
        assert torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0)), where
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, where
        np.testing.assert_array_equal(a, b, err_msg=where)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            require_same(x, y, f"{where}[{i}]")
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            require_same(a[key], b[key], f"{where}[{key}]")
    elif is_dataclass(a):
        for field in fields(a):
            require_same(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}")
    elif hasattr(a, "__dict__") and type(a).__module__.startswith("neuralign"):
        require_same(vars(a), vars(b), where)
    else:
        assert a == b, where


@pytest.fixture
def no_decompositions(monkeypatch):
    def refuse():
        def eigh(*args, **kwargs):
            raise AssertionError("decomposed again")

        monkeypatch.setattr(torch.linalg, "eigh", eigh)

    return refuse


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_design_is_the_design(kind, mmap, tmp_path, no_decompositions):
    design, plans = make(kind)
    Y = responses(features())
    before = [fitted(design, plan, Y) for plan in plans]
    save_design(design, tmp_path / "design.pt")
    no_decompositions()
    loaded = load_design(tmp_path / "design.pt", mmap=mmap)
    require_same(vars(design), vars(loaded))
    for plan, fit in zip(plans, before, strict=True):
        require_same(fit, fitted(loaded, plan, Y))


def test_a_design_without_spectra_computes_them_when_they_are_asked_for(tmp_path):
    design, plans = make("primal")
    save_design(design, tmp_path / "design.pt")
    loaded = load_design(tmp_path / "design.pt")
    assert not loaded._trains
    Y = responses(features())
    require_same(fitted(design, plans[0], Y), fitted(loaded, plans[0], Y))


@pytest.mark.parametrize("encoder", [RidgeCV(alphas=ALPHAS), KernelRidgeCV(kernel="poly", degree=2, alphas=ALPHAS)])
def test_encoders_fit_and_predict_the_same(encoder, tmp_path, no_decompositions):
    X = features()
    Y = responses(X)
    design = encoder.design(X)
    encoder.fit(design, Y)
    expected, alpha = encoder.predict(X), encoder.alpha_
    save_design(design, tmp_path / "design.pt")
    no_decompositions()
    encoder.fit(load_design(tmp_path / "design.pt"), Y)
    np.testing.assert_array_equal(encoder.alpha_, alpha)
    np.testing.assert_array_equal(encoder.predict(X), expected)


def test_a_design_can_be_saved_over_the_file_it_is_mapped_from(tmp_path):
    design, plans = make("dual")
    path = tmp_path / "design.pt"
    save_design(design, path)
    loaded = load_design(path)
    fit = fitted(loaded, plans[0], responses(features()))
    save_design(loaded, path)
    require_same(vars(loaded), vars(load_design(path)))
    require_same(fit, fitted(load_design(path), plans[0], responses(features())))
    assert [one.name for one in tmp_path.iterdir()] == ["design.pt"]


def test_inputs_are_told_apart_and_spectra_are_not():
    X = features()
    design = RidgeCV().design(X)
    digest = inputs_digest(design)
    design.whole(False)
    assert inputs_digest(design) == digest == inputs_digest(RidgeCV().design(X.copy()))
    changed = X.copy()
    changed[7, 3] = np.nextafter(changed[7, 3], np.float32(9))
    others = [
        RidgeCV().design(changed),
        RidgeCV(cv=4).design(X),
        RidgeCV(standardise=True).design(X),
        RidgeCV(fit_intercept=False).design(X),
        RidgeCV(nested=True).design(X),
        RidgeCV().design(X.astype(np.float64)),
        RidgeCV().design(X[:, ::-1]),
        RidgeCV().design(Delays([0]).apply(X, device="cpu")),
        RidgeCV().design(Delays([1]).apply(X, device="cpu")),
    ]
    assert len({digest, *map(inputs_digest, others)}) == 1 + len(others)


# Files that are no designs


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        load_design(tmp_path / "none.pt")


def test_foreign_and_damaged_files(tmp_path):
    path = tmp_path / "design.pt"
    path.write_bytes(b"words")
    with pytest.raises(ValueError, match="no whole design"):
        load_design(path)
    save_design(make("primal")[0], path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="no whole design"):
        load_design(path)
    for foreign in ({"state": torch.zeros(3)}, [1, 2], torch.zeros(2)):
        torch.save(foreign, path)
        with pytest.raises(ValueError, match="holds no design; expected neuralign-design"):
            load_design(path)


def test_files_of_other_versions(tmp_path, monkeypatch):
    path = tmp_path / "design.pt"
    with monkeypatch.context() as patch:
        patch.setattr(design_file, "FORMAT", "neuralign-design-0")
        save_design(make("primal")[0], path)
    with pytest.raises(ValueError, match="format neuralign-design-0; expected"):
        load_design(path)
    save_design(make("primal")[0], path)
    content = torch.load(path, weights_only=True)
    del content["design"]["of"]["layouts"][0]["of"]["trains"]
    torch.save(content, path)
    with pytest.raises(ValueError, match="another version"):
        load_design(path)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Nasty:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'run')!r}, 'w')",))

    path = tmp_path / "design.pt"
    torch.save({"format": design_file.FORMAT, "design": Nasty()}, path)
    with pytest.raises(ValueError, match="no whole design"):
        load_design(path)
    path.write_bytes(pickle.dumps(Nasty()))
    with pytest.raises(ValueError, match="no whole design"):
        load_design(path)
    # Classes are looked up among our own, whatever a file names.
    torch.save({"format": design_file.FORMAT, "device": "cpu", "design": {"is": "Popen", "of": {}}}, path)
    with pytest.raises(ValueError, match="another version"):
        load_design(path)
    assert not (tmp_path / "run").exists()


def test_features_that_no_file_can_hold(tmp_path):
    class Mine:
        pass

    design = make("primal")[0]
    design.matrix = Mine()
    with pytest.raises(ValueError, match=r"design\.matrix is a .*Mine, which a design file cannot hold"):
        save_design(design, tmp_path / "design.pt")
    assert list(tmp_path.iterdir()) == []
