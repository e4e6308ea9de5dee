"""Files that would run code, lead elsewhere or lie about their size; and the honest ones, value for value."""

import ast
import io
import os
import pickle
import stat
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import pytest

from neuralign.datasets import safe
from neuralign.datasets.safe import UnsafeFile

DATASETS = Path(safe.__file__).parent


@pytest.fixture
def canary(tmp_path):
    """A file that no code in a data file may have made by the end of the test."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.how = (function, args)

    def __reduce__(self):
        return self.how


def program(*opcodes):
    return b"\x80\x04" + b"".join(opcodes) + b"."


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module, attribute):
    return text(module) + text(attribute) + b"\x93"  # STACK_GLOBAL


def call(module, attribute, *args):
    return name(module, attribute) + b"(" + b"".join(args) + b"tR"


# ------------------------------------------------------------------------------------------ honest files


VALUES = {
    "floats": np.linspace(-1, 1, 12).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
    "big endian": np.arange(5, dtype=">f4"),
    "texts": np.array(["aardvark", "zèbre"]),
    "bytes": np.array([b"a", b"bc"]),
    "bools": np.array([True, False]),
    "records": np.array([(1, [2.0, 3.0])], [("a", "<i4"), ("b", "<f8", (2,))]),
    "aligned": np.array([(1, 2.0)], np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "dates": np.array(["2020-01-02"], "M8[ns]"),
    "objects": np.array([None, "a", 3, np.arange(3)], object),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_data_come_back(tmp_path, protocol):
    one = {
        **VALUES,
        "scalar": np.float64(3.5),
        "integer": np.int64(-7),
        "names": ["V1", ("V4", 2)],
        "ordered": OrderedDict(b=1, a=2),
        "nothing": b"",
        3: {"deep": [{"er": np.arange(2)}]},
        "shared": [VALUES["floats"], VALUES["floats"]],
    }
    path = tmp_path / "one.pkl"
    path.write_bytes(pickle.dumps(one, protocol))
    back = safe.load_pickle(path)
    assert list(back) == list(one)
    for key, value in VALUES.items():
        assert back[key].dtype == value.dtype and back[key].shape == value.shape, key
        if key != "objects":
            np.testing.assert_array_equal(back[key], value)
    assert back["objects"][:3].tolist() == [None, "a", 3] and back["objects"][3].tolist() == [0, 1, 2]
    assert back["scalar"] == 3.5 and type(back["scalar"]) is np.float64 and back["integer"] == -7
    assert back["names"] == ["V1", ("V4", 2)] and list(back["ordered"].items()) == [("b", 1), ("a", 2)]
    assert back["nothing"] == b"" and back[3]["deep"][0]["er"].tolist() == [0, 1]
    assert back["shared"][0] is back["shared"][1]
    back["floats"][0, 0] = 9  # may be written to


def test_old_pickles_name_numpy_core(tmp_path):
    path = tmp_path / "old.pkl"
    content = pickle.dumps({"x": np.arange(3.0), "s": np.float32(2)}, 2)
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    assert path.read_bytes() != content
    back = safe.load_pickle(path)
    assert back["x"].tolist() == [0, 1, 2] and back["s"] == 2


def test_pickles_of_python_2_hold_their_bytes_as_text(tmp_path):
    # Bytes of values are a SHORT_BINSTRING there.
    raw = np.array([1.5, -200.25]).tobytes()
    dtype = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    (tmp_path / "py2").write_bytes(
        b"\x80\x02" + array + b"(K\x01(K\x02t" + dtype + b"I00\nU" + bytes([len(raw)]) + raw + b"tb."
    )
    assert safe.load_pickle(tmp_path / "py2").tolist() == [1.5, -200.25]


@pytest.mark.parametrize("key", [key for key in VALUES if key != "objects"])
def test_npy_and_npz_come_back_as_numpy_reads_them(tmp_path, key):
    value = VALUES[key]
    np.save(tmp_path / "one.npy", value)
    for found in (
        safe.load_npy(tmp_path / "one.npy"),
        safe.load_npy(io.BytesIO((tmp_path / "one.npy").read_bytes())),
        safe.load_npy(tmp_path / "one.npy", mmap=True),
    ):
        assert found.dtype == value.dtype and found.flags.f_contiguous == value.flags.f_contiguous
        np.testing.assert_array_equal(found, value)
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "one.npz", a=value, b=np.arange(2))
        back = safe.load_npz(tmp_path / "one.npz")
        assert list(back) == ["a", "b"] and back["a"].dtype == value.dtype
        np.testing.assert_array_equal(back["a"], value)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_npy(version):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(6).reshape(2, 3), version)
    file.seek(0)
    assert safe.load_npy(file).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_npy_of_python_2_writes_long_sizes():
    file = io.BytesIO()
    np.save(file, np.arange(10))
    content = file.getvalue().replace(b"(10,), ", b"(10L,),")
    assert b"10L" in content
    assert safe.load_npy(io.BytesIO(content)).tolist() == list(range(10))


def test_both_kinds_of_dict_in_npy(tmp_path):
    eeg = {"preprocessed_eeg_data": np.arange(24.0).reshape(2, 3, 4), "ch_names": ["Pz", "Oz"], "times": np.arange(4)}
    np.save(tmp_path / "saved.npy", eeg, allow_pickle=True)
    (tmp_path / "dumped.npy").write_bytes(pickle.dumps(eeg, 4))
    for one in ("saved", "dumped"):
        back = safe.load_npy(tmp_path / f"{one}.npy", pickled=True)
        assert isinstance(back, dict) and back["ch_names"] == ["Pz", "Oz"]
        np.testing.assert_array_equal(back["preprocessed_eeg_data"], eeg["preprocessed_eeg_data"])
    np.save(tmp_path / "list.npy", np.array([{"a": 1}, {"a": 2}], object), allow_pickle=True)
    assert [one["a"] for one in safe.load_npy(tmp_path / "list.npy", pickled=True)] == [1, 2]
    with pytest.raises(UnsafeFile, match="pickled Python objects"):
        safe.load_npy(tmp_path / "saved.npy")
    with pytest.raises(ValueError, match="no npy file"):
        safe.load_npy(tmp_path / "dumped.npy")


# -------------------------------------------------------------------------------------- malicious pickles


def attacks(canary):
    touch = f"open({str(canary)!r}, 'w').close()"
    command = f"touch {canary}"
    reduce = {
        "os.system": Calls(os.system, command),
        "eval": Calls(eval, touch),
        "exec": Calls(exec, touch),
        "getattr": Calls(getattr, "text", "upper"),
        "open": Calls(open, str(canary), "w"),
        "numpy.load": Calls(np.load, str(canary)),
        "numpy.savetxt": Calls(np.savetxt, str(canary), [1]),
        "np.testing": Calls(np.testing.rundocs, str(canary)),
        "Path.touch": Calls(Path.touch, Path(str(canary))),
        "bytearray": Calls(bytearray, 10),
        "object": Calls(object),
    }
    found = {key: pickle.dumps({"data": one}, 4) for key, one in reduce.items()}
    array = name("numpy", "ndarray")
    found |= {
        "posix.system": program(call("posix", "system", text(command))),
        "dotted": program(name("numpy", "ndarray.__class__")),
        "dotted call": program(call("numpy", "f2py.subprocess.run", text(command))),
        "builtins": program(call("builtins", "eval", text(touch))),
        "python 2 name": b"\x80\x02c__builtin__\neval\n(X" + struct.pack("<I", len(touch)) + touch.encode() + b"tR.",
        "foreign subtype": program(
            call("numpy._core.multiarray", "_reconstruct", name("numpy", "matrix"), b"K\x00\x85", b"C\x01b")
        ),
        "large reconstruct": program(
            call("numpy._core.multiarray", "_reconstruct", array, b"J\x00\x00\x00\x7f\x85", b"C\x01b")
        ),
        "codec": program(call("_codecs", "encode", text("abc"), text("base64"))),
        "decode": program(call("_codecs", "decode", text("abc"), text("rot13"))),
        "new of a stand-in": program(array, b")\x81"),
        "call of a stand-in": program(array, b")R"),
        "state of a stand-in": program(name("_codecs", "encode"), b"}", text("__call__"), text("x"), b"sb"),
        "slots of a stand-in": program(name("_codecs", "encode"), b"N}", text("__doc__"), text("x"), b"s\x86b"),
        "stand-in as a value": program(name("numpy", "dtype")),
        "persistent id": b"\x80\x04" + text("there") + b"Q.",
        "extension": program(b"\x82\x01"),
        "module alone": program(name("os", "environ")),
        "set": pickle.dumps({1, 2}, 4),
        "bytes of a size": program(call("builtins", "bytes", b"J\x00\x00\x00\x7f")),
    }
    return found


@pytest.mark.parametrize("key", list(attacks(Path("x"))))
def test_a_pickle_runs_nothing(tmp_path, canary, key):
    content = attacks(canary)[key]
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        safe.load_pickle(path)
    for found in (tmp_path / "bare.npy", tmp_path / "object.npy"):
        head = b""
        if found.stem == "object":
            file = io.BytesIO()
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
            head = file.getvalue()
        found.write_bytes(head + content)
        with pytest.raises(ValueError):
            safe.load_npy(found, pickled=True)
        with pytest.raises(ValueError):
            safe.load_npy(found)
    # What one file wrote must not change how the next is read.
    path.write_bytes(pickle.dumps({"a": np.arange(3), "b": b"\xff"}, 2))
    assert safe.load_pickle(path)["a"].tolist() == [0, 1, 2] and safe.load_pickle(path)["b"] == b"\xff"


def test_the_canary_would_be_seen(tmp_path):
    path = tmp_path / "canary"
    pickle.loads(attacks(path)["posix.system"])
    assert path.exists()


def test_the_message_names_what_was_asked_for(tmp_path):
    path = tmp_path / "bad.npy"
    path.write_bytes(program(call("os", "system", text("true"))))
    with pytest.raises(UnsafeFile, match=r"bad.npy asked for os.system; a file of data needs numpy arrays"):
        safe.load_npy(path, pickled=True)


@pytest.mark.parametrize(
    "offsets, itemsize", [((0, 10**6), 16), ((0, -8), 16), ((0, 12), 16), ((0, 8), -1), ((0, 8), 8)]
)
def test_offsets_of_a_dtype_are_not_believed(tmp_path, offsets, itemsize):
    """numpy's own unpickling writes what a file says over its tables, and reads beyond the array."""
    true = np.zeros(4, [("a", "<f8"), ("b", "<f8")])
    (tmp_path / "one.pkl").write_bytes(pickle.dumps(true, 4))
    assert safe.load_pickle(tmp_path / "one.pkl").dtype == true.dtype

    class Lying:
        def __reduce__(self):
            fields = {"a": (np.dtype("f8"), offsets[0]), "b": (np.dtype("f8"), offsets[1])}
            state = (3, "|", None, ("a", "b"), fields, itemsize, 1, 16)
            dtype = Calls(np.dtype, "V16", False, True)
            dtype.how = (np.dtype, ("V16", False, True), state)
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (4,), dtype, False, bytes(64))

    (tmp_path / "one.pkl").write_bytes(pickle.dumps(Lying(), 4))
    with pytest.raises(ValueError, match="damaged"):
        safe.load_pickle(tmp_path / "one.pkl")


@pytest.mark.parametrize("shape, content", [((1000,), b"1234"), ((10**12,), b""), ((-1,), b""), ((1,), [None] * 5)])
def test_arrays_have_the_bytes_they_claim(tmp_path, shape, content):
    class Lying:
        def __reduce__(self):
            dtype = np.dtype("O" if isinstance(content, list) else "f8")
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, content)

    (tmp_path / "one.pkl").write_bytes(pickle.dumps(Lying(), 4))
    with pytest.raises(ValueError):
        safe.load_pickle(tmp_path / "one.pkl")


def test_objects_behind_numbers_are_refused(tmp_path):
    """Numbers read as addresses of objects would be followed."""

    class Scalar:
        def __reduce__(self):
            return np._core.multiarray.scalar, (np.dtype("O"), b"12345678")

    class Buffer:
        def __reduce__(self):
            return np._core.numeric._frombuffer, (bytes(16), np.dtype("O"), (2,), "C")

    class Record:
        def __reduce__(self):
            dtype = np.dtype([("a", "O")])
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, bytes(8))

    for one in (Scalar(), Buffer(), Record()):
        (tmp_path / "one.pkl").write_bytes(pickle.dumps(one, 4))
        with pytest.raises(UnsafeFile, match="holds objects"):
            safe.load_pickle(tmp_path / "one.pkl")


def test_bombs_of_nesting_and_sharing(tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(UnsafeFile, match="nested more than 20"):
        safe.load_pickle(path)
    itself = []
    itself.append(itself)
    path.write_bytes(pickle.dumps(itself))
    with pytest.raises(UnsafeFile, match="holds itself"):
        safe.load_pickle(path)
    wide = ["x"]
    for _ in range(18):
        wide = [wide] * 1000  # 1000**18 leaves, were they not shared
    path.write_bytes(pickle.dumps(wide))
    assert len(safe.load_pickle(path)) == 1000


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cut_pickles_are_damaged_everywhere(tmp_path, protocol):
    content = pickle.dumps({"a": np.arange(40.0), "b": ["x", "y"]}, protocol)
    path = tmp_path / "cut.pkl"
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            safe.load_pickle(path)


def test_a_length_within_a_pickle_is_not_allocated(tmp_path):
    import tracemalloc

    path = tmp_path / "long.pkl"
    for opcode in (b"\x8d", b"\x8e", b"\x95"):  # BINUNICODE8, BINBYTES8, FRAME
        path.write_bytes(b"\x80\x04" + opcode + struct.pack("<Q", 2**33) + b"abc.")
        tracemalloc.start()
        with pytest.raises(ValueError):
            safe.load_pickle(path)
        # Room for bytes is reserved by the unpickler itself, and never touched.
        assert opcode == b"\x8e" or tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


# ------------------------------------------------------------------------------------- malicious headers


def npy(descr="<f8", shape="(3,)", content=bytes(24), header=None):
    header = header or f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    header = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    "content, message",
    [
        (npy(shape="(10**12,)"), "damaged"),
        (npy(shape="(1000000000000,)"), "cut off"),
        (npy(shape="(3, -1)"), "shape"),
        (npy(shape="(True,)"), "shape"),
        (npy(shape="'abc'"), "shape"),
        (npy(shape="(4,)"), "cut off.*32 bytes, and 24"),
        (npy(descr="|S0", shape="(1000000000000,)"), "no bytes"),
        (npy(descr="nonsense"), "damaged"),
        (npy(header="{'descr': '<f8'}"), "header"),
        (npy(header="__import__('os').system('true')"), "damaged"),
        (npy(header="(" * 9000), "damaged"),
        (npy(header="[" * 4000 + "]" * 4000), "damaged|header"),
        (npy(header="-" * 9000 + "1"), "damaged|header"),
        (npy(header="9" * 9000), "damaged|header"),
        (b"\x93NUMPY\x09\x00" + bytes(50), r"version \(9, 0\)"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + bytes(50), "header takes"),
        (npy()[:30], "cut off within its header"),
        (b"\x93NUMPY", "version"),
        (b"", "no npy file"),
        (b"PK\x03\x04", "no npy file"),
    ],
    ids=range(20),
)
def test_headers_that_lie(tmp_path, content, message):
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    for options in ({}, {"mmap": True}):
        with pytest.raises(ValueError, match=message):
            safe.load_npy(path, **options)
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(ValueError, match=r"bad.npz:a.npy"):
        safe.load_npz(tmp_path / "bad.npz")


def test_npz_with_a_pickled_member(tmp_path, canary):
    np.savez(tmp_path / "bad.npz", a=np.arange(3), b=np.array([Calls(os.system, f"touch {canary}")], object))
    with pytest.raises(UnsafeFile, match="bad.npz:b.npy holds pickled Python objects"):
        safe.load_npz(tmp_path / "bad.npz")


# ------------------------------------------------------------------------------------------ zip archives


def zip_of(path, names, mode=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in names:
            member = zipfile.ZipInfo(one)
            if mode is not None:
                member.external_attr = mode << 16
            archive.writestr(member, b"content")
    return path


@pytest.mark.parametrize("bad", ["../x", "/x", "C:/x", "C:x", "a/../../x", "a/./x", "a//x", ".."])
def test_members_stay_in_their_folder(tmp_path, bad):
    path = zip_of(tmp_path / "bad.zip", ["good.txt", bad])
    with pytest.raises(UnsafeFile, match="bad.zip: member"):
        safe.unpack(path, tmp_path / "inner" / "out")
    with zipfile.ZipFile(path) as archive, pytest.raises(UnsafeFile):
        safe.zip_members(archive)
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and one != path]


def test_backslashes_links_devices_and_twins(tmp_path):
    path = zip_of(tmp_path / "bad.zip", ["a_b"])
    path.write_bytes(path.read_bytes().replace(b"a_b", b"a\\b"))
    with pytest.raises(UnsafeFile, match="absolute"):
        safe.unpack(path, tmp_path / "out")
    for mode in (stat.S_IFLNK | 0o777, stat.S_IFCHR, stat.S_IFIFO):
        with pytest.raises(UnsafeFile, match="link or a device"):
            safe.unpack(zip_of(tmp_path / "bad.zip", ["a"], mode), tmp_path / "out")
    with pytest.warns(UserWarning, match="Duplicate"):
        zip_of(tmp_path / "bad.zip", ["a", "a"])
    with pytest.raises(UnsafeFile, match="there twice"):
        safe.unpack(path, tmp_path / "out")


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeFile, match="would be written to"):
        safe.unpack(zip_of(tmp_path / "one.zip", ["link/x"]), tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_unpacking(tmp_path):
    path = zip_of(tmp_path / "one.zip", ["a/b.txt", "a/c/d.txt", "e/"], stat.S_IFREG | 0o644)
    written = safe.unpack(path, tmp_path / "out")
    assert [one.relative_to(tmp_path / "out").as_posix() for one in written] == ["a/b.txt", "a/c/d.txt"]
    assert all(one.read_bytes() == b"content" for one in written)
    assert sorted(one.name for one in (tmp_path / "out").rglob("*") if one.is_file()) == ["b.txt", "d.txt"]


def test_zip_bombs(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2**22))
    content = (tmp_path / "bomb.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "bomb.zip") as archive:
        with pytest.raises(UnsafeFile, match="at most 1000 are read"):
            safe.zip_members(archive, limit=1000)
        assert len(safe.zip_members(archive)) == 1
    # An archive that says less than a member inflates to.
    (tmp_path / "bomb.zip").write_bytes(content.replace(struct.pack("<I", 2**22), struct.pack("<I", 100)))
    with pytest.raises(ValueError, match="damaged"):
        safe.unpack(tmp_path / "bomb.zip", tmp_path / "out")
    assert not [one for one in (tmp_path / "out").rglob("*") if one.is_file()]
    (tmp_path / "cut.zip").write_bytes(content[:-30])
    with pytest.raises(ValueError, match="not a whole zip"):
        safe.unpack(tmp_path / "cut.zip", tmp_path / "out")


# ------------------------------------------------------------------------------------------------- HDF5


@pytest.fixture
def hdf5(tmp_path):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.arange(3)
    np.arange(3.0).tofile(tmp_path / "raw")
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["group/betas"] = np.arange(6).reshape(2, 3)
        file["texts"] = ["a", "b"]
        file["link"] = h5py.ExternalLink("other.h5", "secret")
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/")
        file["soft"] = h5py.SoftLink("/group/betas")
        file["soft out"] = h5py.SoftLink("/elsewhere/secret")
        file["circle"] = h5py.SoftLink("/circle")
        file["ring"] = h5py.SoftLink("/ring2/x")
        file["ring2"] = h5py.SoftLink("/ring")
        layout = h5py.VirtualLayout((3,), "i8")
        layout[:] = h5py.VirtualSource(str(other), "secret", (3,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", (3,), "f8", external=[(str(tmp_path / "raw"), 0, 24)])
        file.create_dataset("ragged", (2,), h5py.vlen_dtype(np.int32))
        file.create_dataset("records", (2,), [("a", "i4"), ("b", h5py.ref_dtype)])
    with h5py.File(tmp_path / "one.h5") as file:
        yield file


def test_hdf5_arrays_lie_in_the_file(hdf5):
    assert safe.hdf5_array(hdf5, "group/betas", ndim=2)[1, 2] == 5
    assert safe.hdf5_array(hdf5, "/soft")[0, 1] == 1
    assert safe.hdf5_array(hdf5["group"], "betas").shape == (2, 3)
    assert safe.hdf5_array(hdf5, "texts").asstr()[1] == "b"
    for one in ("link", "elsewhere/secret", "soft out", "circle", "ring", "virtual", "external", "ragged", "records"):
        with pytest.raises(UnsafeFile, match=r"one.h5"):
            safe.hdf5_array(hdf5, one)
    with pytest.raises(ValueError, match=r"dataset='group/beta' is unknown; did you mean 'group/betas'"):
        safe.hdf5_array(hdf5, "group/beta")
    with pytest.raises(ValueError, match="expected 3 axes"):
        safe.hdf5_array(hdf5, "group/betas", ndim=3)
    with pytest.raises(ValueError, match="is a group"):
        safe.hdf5_array(hdf5, "group")


# ---------------------------------------------------------------------------------------- the whole floor


def test_no_module_of_datasets_opens_files_that_run_code():
    """Every other door through which a pickle could come."""
    names = {"read_pickle", "read_hdf", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
    found = []
    for path in sorted(DATASETS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(DATASETS)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                owner = getattr(getattr(node.func, "value", None), "id", "")
                if called in ("eval", "exec", "compile", "__import__") and owner in ("", "builtins"):
                    found.append(f"{where} {called}")
                if called in names or (owner in ("pickle", "torch") and called in ("load", "loads")):
                    found.append(f"{where} {owner}.{called}")
                for word in node.keywords:
                    if word.arg == "allow_pickle" and not (
                        isinstance(word.value, ast.Constant) and word.value.value is False
                    ):
                        found.append(f"{where} allow_pickle")
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [one.name for one in node.names] + [getattr(node, "module", None) or ""]
                found += [f"{where} {one}" for one in modules if one.split(".")[0] in names]
            if isinstance(node, ast.Import) and any(one.name == "pickle" for one in node.names):
                found += [] if path.name in ("safe.py", "unpickling.py") else [f"{where} pickle"]
    assert found == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of escapes in headers that were broken
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_broken_bytes_give_one_kind_of_error(tmp_path, protocol):
    """Whatever a byte is changed to: values of some kind, or a ValueError."""
    rng = np.random.default_rng(protocol)
    whole = pickle.dumps(
        {"a": VALUES["records"], "b": VALUES["objects"], "c": np.float32(1), "d": VALUES["dates"]}, protocol
    )
    file = io.BytesIO()
    np.save(file, np.arange(6, dtype=np.int16).reshape(2, 3))
    n_refused = 0
    for _ in range(150):
        for content, read in ((whole, safe.load_pickle), (file.getvalue(), safe.load_npy)):
            broken = bytearray(content)
            for place in rng.integers(0, len(content), 2):
                broken[place] = rng.integers(256)
            (tmp_path / "broken").write_bytes(bytes(broken))
            try:
                read(tmp_path / "broken")
            except ValueError:
                n_refused += 1
    assert n_refused > 50
