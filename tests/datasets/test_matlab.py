"""The same variables in MATLAB v5 and v7.3 files, and files of both kinds that are not what they seem."""

import pickle
import struct
import zlib

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from neuralign.datasets.matlab import mat_variable, read_mat
from neuralign.datasets.safe import UnsafeFile

RNG = np.random.default_rng(0)
RDMS = RNG.normal(size=(15, 4, 4))


class V73:
    """Writes a v7.3 file as MATLAB does: HDF5 behind 512 bytes of text, axes reversed, cells by reference."""

    def __init__(self, path):
        self.path = path
        self.file = h5py.File(path, "w", userblock_size=512)
        self.refs = self.file.create_group("#refs#")
        self.n_refs = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()
        with self.path.open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM")

    def put(self, parent, name, value):
        if isinstance(value, dict):
            node = parent.create_group(name)
            node.attrs["MATLAB_class"] = np.bytes_("struct")
            fields = np.empty(len(value), object)
            fields[:] = [np.array([c.encode() for c in key], "S1") for key in value]
            node.attrs.create("MATLAB_fields", fields, dtype=h5py.vlen_dtype(np.dtype("S1")))
            for key, one in value.items():
                self.put(node, key, one)
            return node
        if isinstance(value, tuple):  # an array of structs
            node = parent.create_group(name)
            node.attrs["MATLAB_class"] = np.bytes_("struct")
            for key in value[0]:
                node[key] = self.references([one[key] for one in value])
            return node
        if isinstance(value, list):
            parent[name] = self.references(value)
            node = parent[name]
            return self.label(node, "cell")
        if isinstance(value, str):
            if not value:
                node = parent.create_dataset(name, data=np.zeros(2, "u8"))
                node.attrs["MATLAB_empty"] = 1
                return self.label(node, "char")
            codes = np.frombuffer(value.encode("utf-16-le"), "<u2")
            node = parent.create_dataset(name, data=codes[:, None])
            return self.label(node, "char")
        value = np.atleast_2d(np.asarray(value))
        if value.size == 0:
            node = parent.create_dataset(name, data=np.array(value.shape, "u8"))
            node.attrs["MATLAB_empty"] = 1
            return self.label(node, "double")
        if value.dtype.kind == "c":
            records = np.zeros(value.shape, [("real", "f8"), ("imag", "f8")])
            records["real"], records["imag"] = value.real, value.imag
            return self.label(parent.create_dataset(name, data=records.T), "double")
        kinds = {"bool": "logical", "float64": "double", "float32": "single"}
        node = parent.create_dataset(name, data=value.T.astype("u1" if value.dtype == bool else value.dtype))
        return self.label(node, kinds.get(value.dtype.name, value.dtype.name))

    @staticmethod
    def label(node, kind):
        node.attrs["MATLAB_class"] = np.bytes_(kind)
        return node

    def references(self, values):
        out = np.empty((len(values), 1), h5py.ref_dtype)
        for place, value in enumerate(values):
            self.n_refs += 1
            out[place, 0] = self.put(self.refs, f"r{self.n_refs}", value).ref
        return out


VALUES = {
    "rdms": RDMS,
    "order": np.array([[3, 1, 2]], np.uint16),
    "column": np.arange(4.0)[:, None],
    "single": np.float32(2.5),
    "number": 73000.0,
    "flag": np.array([[True, False, True]]),
    "empty": np.zeros((0, 0)),
    "wave": np.array([[1 + 2j, 3 - 1j]]),
    "name": "sub-01 é",
    "nothing": "",
    "names": ["V1", "hV4", "", "FFA"],
    "mixed": [np.arange(3.0), "x", {"a": 1.0}, ["deep"]],
    "stim": {"resp": np.arange(6.0).reshape(2, 3), "istim": np.array([[2, 1]], np.uint16), "meta": {"id": "m1"}},
    "sentences": ({"content": "one two", "fix": 2.0}, {"content": "three", "fix": np.zeros((0, 0))}),
}


def as_scipy(value):
    """What savemat needs to write the same classes."""
    if isinstance(value, dict):
        return {key: as_scipy(one) for key, one in value.items()}
    if isinstance(value, tuple):
        out = np.empty(len(value), [(key, object) for key in value[0]])
        for row, one in enumerate(value):
            out[row] = tuple(as_scipy(one[key]) for key in one)
        return out
    if isinstance(value, list):
        out = np.empty((len(value), 1), object)
        for row, one in enumerate(value):
            out[row, 0] = as_scipy(one)
        return out
    return value


@pytest.fixture
def files(tmp_path):
    scipy.io.savemat(tmp_path / "v5.mat", as_scipy(VALUES), do_compression=True)
    with V73(tmp_path / "v73.mat") as out:
        for key, value in VALUES.items():
            out.put(out.file, key, value)
    return tmp_path


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b, where


def test_both_versions_give_the_same(files):
    old, new = read_mat(files / "v5.mat"), read_mat(files / "v73.mat")
    assert set(old) == set(new) == set(VALUES)
    for key in VALUES:
        assert_same(old[key], new[key], key)


@pytest.mark.parametrize("version", ["v5", "v73"])
def test_what_comes_back(files, version):
    found = read_mat(files / f"{version}.mat")
    np.testing.assert_array_equal(found["rdms"], RDMS)
    assert found["order"].tolist() == [3, 1, 2] and found["order"].dtype == np.uint16
    assert found["number"] == 73000 and found["single"] == 2.5 and found["column"].shape == (4,)
    assert found["flag"].tolist() == [True, False, True] and found["flag"].dtype == bool
    assert found["empty"].shape == (0,) and found["wave"].tolist() == [1 + 2j, 3 - 1j]
    assert found["name"] == "sub-01 é" and found["nothing"] == ""
    assert found["names"] == ["V1", "hV4", "", "FFA"]
    assert found["mixed"][0].tolist() == [0, 1, 2] and found["mixed"][1:] == ["x", {"a": 1.0}, ["deep"]]
    assert list(found["stim"]) == ["resp", "istim", "meta"] and found["stim"]["meta"] == {"id": "m1"}
    np.testing.assert_array_equal(found["stim"]["resp"], [[0, 1, 2], [3, 4, 5]])
    assert [one["content"] for one in found["sentences"]] == ["one two", "three"]
    assert found["sentences"][1]["fix"].shape == (0,)
    assert list(read_mat(files / f"{version}.mat", ["names"])) == ["names"]
    with pytest.raises(ValueError, match="name='nams' is unknown; did you mean 'names'"):
        read_mat(files / f"{version}.mat", ["nams"])


@pytest.mark.parametrize("version", ["v5", "v73"])
def test_cells_of_two_axes_are_in_column_major_order(tmp_path, version):
    path = tmp_path / "one.mat"
    texts = [["a", "b", "c"], ["d", "e", "f"]]
    if version == "v5":
        scipy.io.savemat(path, {"cells": np.array(texts, object)})
    else:
        with V73(path) as out:
            column = out.references([one for pair in zip(*texts, strict=True) for one in pair])
            out.file["cells"] = column.reshape(3, 2)  # MATLAB's 2 x 3
            V73.label(out.file["cells"], "cell")
    assert read_mat(path)["cells"] == ["a", "d", "b", "e", "c", "f"]


@pytest.mark.parametrize("version", ["v5", "v73"])
def test_rows_of_characters(tmp_path, version):
    path = tmp_path / "one.mat"
    if version == "v5":
        scipy.io.savemat(path, {"x": np.array(["ab ", "cde"])})
    else:
        with V73(path) as out:
            codes = np.array([[ord(c) for c in row] for row in ("ab ", "cde")], "u2")
            V73.label(out.file.create_dataset("x", data=codes.T), "char")
    assert read_mat(path)["x"].tolist() == ["ab ", "cde"]


def test_packed_doubles_are_doubles(tmp_path):
    """MATLAB stores doubles that are small whole numbers as uint8; subtracting 1 from 0 would give 255."""
    scipy.io.savemat(tmp_path / "one.mat", {"x": np.array([[0.0, 1.0]])})
    content = bytearray((tmp_path / "one.mat").read_bytes())
    place = content.index(struct.pack("<II", 9, 16))  # miDOUBLE, 16 bytes
    packed = struct.pack("<HH", 2, 2) + bytes([0, 1, 0, 0])  # miUINT8, 2 bytes, in the short form
    head = content[128 : 128 + 8]
    size = struct.unpack("<I", head[4:])[0] - (len(content) - place) + len(packed)
    content[132:136] = struct.pack("<I", size)
    (tmp_path / "one.mat").write_bytes(bytes(content[:place]) + packed)
    found = read_mat(tmp_path / "one.mat")["x"]
    assert found.dtype == np.float64 and (found - 1).tolist() == [-1, 0]
    assert mat_variable(tmp_path / "one.mat", "x").dtype == np.float64


@pytest.mark.parametrize("version", ["v5", "v73"])
def test_slabs_of_a_variable(files, version):
    lazy = mat_variable(files / f"{version}.mat", "rdms")
    assert lazy.shape == (15, 4, 4) and lazy.dtype == np.float64 and lazy.ndim == 3
    np.testing.assert_array_equal(lazy[2:5], RDMS[2:5])
    np.testing.assert_array_equal(lazy[:, 1:3, 2], RDMS[:, 1:3, 2])
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(lazy))), RDMS)
    assert mat_variable(files / f"{version}.mat", "order").shape == (1, 3)
    field = mat_variable(files / f"{version}.mat", "stim/resp")
    assert field.shape == (2, 3) and field[1].tolist() == [3, 4, 5]
    assert mat_variable(files / f"{version}.mat", "flag")[:].tolist() == [[True, False, True]]
    assert mat_variable(files / f"{version}.mat", "wave")[0].tolist() == [1 + 2j, 3 - 1j]
    for name in ("stim/respo", "rdmss", "names", "name", "stim"):
        with pytest.raises(ValueError, match=name.split("/")[-1]):
            mat_variable(files / f"{version}.mat", name)


def test_a_slab_reads_its_part_of_the_file_alone(files, monkeypatch):
    asked = []
    original = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, key: asked.append(key) or original(self, key))
    mat_variable(files / "v73.mat", "rdms")[2:5]
    assert asked == [(slice(None), slice(None), slice(2, 5))]


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("version", ["v5", "v73"])
def test_cut_and_damaged_files(files, tmp_path, version):
    whole = (files / f"{version}.mat").read_bytes()
    path = tmp_path / "cut.mat"
    for share in (0, 0.01, 0.2, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"cut.mat"):
            read_mat(path)
    rng = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            broken[place] = rng.integers(256)
        path.write_bytes(bytes(broken))
        try:
            read_mat(path)
        except ValueError:
            continue
    with pytest.raises(FileNotFoundError):
        read_mat(tmp_path / "none.mat")
    path.write_text("not a MATLAB file at all, just a long text that somebody renamed " * 10)
    with pytest.raises(ValueError):
        read_mat(path)


def matrix(name, kind, *parts):
    """A variable of a v5 file."""

    def element(code, content):
        return struct.pack("<II", code, len(content)) + content + bytes(-len(content) % 8)

    body = element(6, struct.pack("<II", kind, 0))
    body += b"".join(element(code, content) for code, content in parts)
    return element(14, body)


def mat5(path, *variables):
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + bytes(8) + b"\x00\x01IM" + b"".join(variables))
    return path


def test_functions_and_objects_of_v5(tmp_path):
    dims, name = (5, struct.pack("<ii", 1, 1)), (1, b"f")
    inner = matrix(
        "", 4, (5, struct.pack("<ii", 1, 3)), (1, b""), (4, np.frombuffer(b"sin", "u1").astype("<u2").tobytes())
    )
    handle = matrix("f", 16, dims, name)
    function = bytearray(handle + inner)
    function[4:8] = struct.pack("<I", len(function) - 8)
    path = mat5(tmp_path / "f.mat", bytes(function))
    with pytest.raises(UnsafeFile, match="is a MATLAB function"):
        read_mat(path)
    opaque = matrix("o", 17, (1, b"o"), (1, b"MCOS"), (1, b"table"))
    data = matrix("", 9, (5, struct.pack("<ii", 1, 1)), (1, b""), (2, b"\x01"))
    content = bytearray(opaque + data)
    content[4:8] = struct.pack("<I", len(content) - 8)
    with pytest.raises(ValueError):
        read_mat(mat5(tmp_path / "o.mat", bytes(content)))
    scipy.io.savemat(tmp_path / "s.mat", {"x": scipy.sparse.eye(3), "y": 1.0})
    with pytest.raises(ValueError, match=r"sparse matrix.*full\(x\)"):
        read_mat(tmp_path / "s.mat")
    assert read_mat(tmp_path / "s.mat", ["y"]) == {"y": 1.0}


def test_a_bomb_in_v5(tmp_path):
    packed = zlib.compress(bytes(2**20))
    path = mat5(tmp_path / "b.mat", struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(ValueError):
        read_mat(path)
    huge = matrix("x", 6, (5, struct.pack("<ii", 2**30, 2**30)), (1, b"x"), (9, b""))
    with pytest.raises(ValueError):
        read_mat(mat5(tmp_path / "h.mat", huge))


@pytest.mark.parametrize(
    "what", ["cycle", "self", "external", "soft", "virtual", "raw", "object", "function", "sparse", "null", "records"]
)
def test_v73_that_is_no_data(tmp_path, what):
    path, other = tmp_path / "bad.mat", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.arange(3.0)
    (tmp_path / "raw").write_bytes(bytes(24))
    with V73(path) as out:
        file = out.file
        if what == "cycle":
            out.put(file, "x", [["a"]])
            inner = file[file["x"][0, 0]]
            inner[0, 0] = file["x"].ref
        elif what == "self":
            out.put(file, "x", ["a", "b"])
            file["x"][:, 0] = [file["x"].ref] * 2
        elif what == "external":
            file["x"] = h5py.ExternalLink("other.h5", "secret")
        elif what == "soft":
            file["s/y"] = h5py.SoftLink("/x")
            file["x"] = 1.0
        elif what == "virtual":
            layout = h5py.VirtualLayout((3,), "f8")
            layout[:] = h5py.VirtualSource(str(other), "secret", (3,))
            V73.label(file.create_virtual_dataset("x", layout), "double")
        elif what == "raw":
            V73.label(file.create_dataset("x", (3,), "f8", external=[(str(tmp_path / "raw"), 0, 24)]), "double")
        elif what == "object":
            out.put(file, "x", np.arange(6.0)).attrs["MATLAB_object_decode"] = 3
        elif what == "function":
            V73.label(out.put(file, "x", "sin"), "function_handle")
        elif what == "sparse":
            out.put(file, "x", {"data": np.ones(3), "ir": np.arange(3), "jc": np.arange(4)})
            file["x"].attrs["MATLAB_sparse"] = 3
        elif what == "null":
            V73.label(file.create_dataset("x", (2, 1), h5py.ref_dtype), "cell")
        else:
            file.create_dataset("x", (2,), [("a", "i4"), ("b", h5py.ref_dtype)])
    with pytest.raises(ValueError, match=r"bad.mat"):
        read_mat(path)
    if what in ("external", "virtual", "raw"):
        with pytest.raises(ValueError, match=r"bad.mat"):
            mat_variable(path, "x")[:]


def test_a_pandas_file_is_no_gate_for_pickles(tmp_path):
    """pandas keeps axes of objects as pickles in arrays of bytes: here they stay bytes."""
    path = tmp_path / "p.mat"
    with h5py.File(path, "w") as file:
        axis = file.create_dataset("axis0", (1,), h5py.vlen_dtype(np.uint8))
        axis[0] = np.frombuffer(pickle.dumps(print), np.uint8)
        file["values"] = np.arange(3.0)
    with pytest.raises(UnsafeFile, match="expected numbers"):
        read_mat(path)
    assert read_mat(path, ["values"])["values"].tolist() == [0, 1, 2]


def test_what_is_referred_to_twice_is_read_once(tmp_path):
    """Twelve cells of a hundred references each to the next would be 100**12 values."""
    path = tmp_path / "wide.mat"
    with V73(path) as out:
        reference = out.put(out.refs, "last", np.arange(3.0)).ref
        for level in range(12):
            node = out.refs.create_dataset(f"level{level}", (100, 1), h5py.ref_dtype)
            node[:, 0] = np.array([reference] * 100, h5py.ref_dtype)
            reference = V73.label(node, "cell").ref
        out.file["x"] = out.refs["level11"]
    found = read_mat(path)["x"]
    for _ in range(11):
        assert len(found) == 100
        found = found[99]
    assert found[0].tolist() == [0, 1, 2]
