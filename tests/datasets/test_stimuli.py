import hashlib
import io
import pickle
import tracemalloc
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import wavfile

from neuralign.datasets import StimulusSet


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, pixels):
    for i, image in enumerate(pixels):
        (tmp_path / f"im{i}.png").write_bytes(png(image))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".im9.png").write_bytes(b"hidden")
    return tmp_path


def zipped(path, pixels, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for i in reversed(range(len(pixels))):
            archive.writestr(f"{prefix}im{i}.png", png(pixels[i]))
        archive.writestr(f"__MACOSX/{prefix}._im0.png", b"junk")
        archive.writestr(f"{prefix}.DS_Store", b"junk")
    return path


def test_images_come_back_as_given(pixels):
    stimuli = StimulusSet.from_images(pixels)
    assert stimuli.ids[0] == "image-00001"
    assert len(stimuli) == 5 and list(stimuli) == list(stimuli.ids)
    np.testing.assert_array_equal(stimuli.images(), pixels)
    np.testing.assert_array_equal(np.asarray(stimuli.image(-1)), pixels[4])


def test_floats_are_scaled_and_grey_becomes_rgb(pixels):
    grey = pixels[..., 0]
    from_float = StimulusSet.from_images(grey / 255).images()
    np.testing.assert_array_equal(from_float, np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.full((2, 4, 4, 3), 1.5), "within \\[0, 1\\]"),
        (np.full((2, 4, 4, 3), np.nan), "within \\[0, 1\\]"),
        (np.zeros((2, 4, 4, 3), np.int64), "int64"),
        (np.zeros((2, 3, 4, 4), np.uint8), "transpose"),
        (np.zeros((4, 4), np.uint8), "single image in a list"),
    ],
)
def test_images_that_are_none_are_refused(images, words):
    with pytest.raises(ValueError, match=words):
        StimulusSet.from_images(images)


def test_folder_zip_and_prefixed_zip_hold_the_same(folder, tmp_path, pixels):
    sets = [
        StimulusSet.from_folder(folder),
        StimulusSet.from_zip(zipped(tmp_path / "flat.zip", pixels)),
        StimulusSet.from_zip(zipped(tmp_path / "deep.zip", pixels, "all/of them/")),
    ]
    for stimuli in sets:
        assert stimuli.ids == ("im0", "im1", "im2", "im3", "im4")
        np.testing.assert_array_equal(stimuli.images(), pixels)
        assert stimuli.content_hash == sets[0].content_hash
        assert stimuli.digests[2] == hashlib.sha256(png(pixels[2])).hexdigest()


def test_names_are_paths_where_stems_collide(tmp_path, pixels):
    for part in ("cats", "dogs"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "1.png").write_bytes(png(pixels[0]))
    assert StimulusSet.from_folder(tmp_path).ids == ("cats/1", "dogs/1")
    (tmp_path / "cats" / "1.jpg").write_bytes(png(pixels[1]))
    assert StimulusSet.from_folder(tmp_path).ids == ("cats/1.jpg", "cats/1.png", "dogs/1.png")
    assert StimulusSet.from_folder(tmp_path, "cats/*.png").ids == ("1",)


def test_absent_and_empty_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        StimulusSet.from_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no images"):
        StimulusSet.from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.zip"):
        StimulusSet.from_zip(tmp_path / "no.zip")


def test_truncated_zip_names_path_and_mend(tmp_path, pixels):
    path = zipped(tmp_path / "images.zip", pixels)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"images\.zip.*fetch it again"):
        StimulusSet.from_zip(path)


def test_damaged_member_names_stimulus_and_file(tmp_path, pixels):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            archive.writestr(f"im{i}.png", png(pixels[i]))
    data = bytearray(path.read_bytes())
    start = data.index(png(pixels[1]))
    data[start + 100] ^= 255
    path.write_bytes(data)
    stimuli = StimulusSet.from_zip(path)
    with pytest.raises(ValueError, match=r"'im1'.*images\.zip:im1\.png"):
        stimuli.images()


def test_unreadable_image_names_stimulus_and_file(folder):
    path = folder / "im3.png"
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(ValueError, match=r"'im3' .*im3\.png"):
        StimulusSet.from_folder(folder).images()
    path.unlink()
    stimuli = StimulusSet.from_images([folder / "im0.png"])
    (folder / "im0.png").unlink()
    with pytest.raises(FileNotFoundError, match="'im0'"):
        stimuli.image(0)


def test_hdf5_rows_are_read_in_any_order(tmp_path, pixels):
    path = tmp_path / "images.h5"
    with h5py.File(path, "w") as file:
        file["deep/imgBrick"] = pixels
        file["labels"] = np.arange(5)
    stimuli = StimulusSet.from_hdf5(path)
    np.testing.assert_array_equal(stimuli.images(), pixels)
    np.testing.assert_array_equal(stimuli[[4, 0, 1, 3]].images(), pixels[[4, 0, 1, 3]])
    assert stimuli.content_hash == StimulusSet.from_images(pixels).content_hash
    np.testing.assert_array_equal(StimulusSet.from_hdf5(path, "deep/imgBrick").images(), pixels)
    with pytest.raises(ValueError, match="deep/imgBrick"):
        StimulusSet.from_hdf5(path, "imgBrick")
    with pytest.raises(ValueError, match="expected uint8"):
        StimulusSet.from_hdf5(path, "labels")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"images\.h5.*whole HDF5"):
        StimulusSet.from_hdf5(path)


def test_subset_by_ids_mask_slice_and_positions(pixels):
    table = pd.DataFrame({"category": list("abcde")})
    objects = pd.DataFrame({"stimulus": [f"image-0000{i}" for i in (1, 1, 3, 5)], "x": [1.0, 2, 3, 4]})
    stimuli = StimulusSet.from_images(pixels, table=table, objects=objects)
    mask = np.array([True, False, True, False, False])
    for key in (["image-00003", "image-00001"], [2, 0], np.array([2, 0]), [-3, -5]):
        part = stimuli[key]
        assert part.ids == ("image-00003", "image-00001")
        np.testing.assert_array_equal(part.images(), pixels[[2, 0]])
        assert list(part.table["category"]) == ["c", "a"]
        assert sorted(part.objects["x"]) == [1, 2, 3]
    assert stimuli[mask].ids == stimuli[0:3:2].ids == ("image-00001", "image-00003")
    assert stimuli["image-00002"].ids == ("image-00002",)
    np.testing.assert_array_equal(stimuli.index(["image-00005", "image-00001"]), [4, 0])
    np.testing.assert_array_equal(stimuli.images(ids=["image-00005", "image-00001"]), pixels[[4, 0]])
    with pytest.raises(ValueError, match="did you mean 'image-00001'"):
        stimuli.select("image-0001")
    with pytest.raises(ValueError, match="mask of 3"):
        stimuli[np.array([True, False, True])]
    with pytest.raises(ValueError, match="outside"):
        stimuli[[7]]


def test_hash_follows_content_order_and_ids_but_not_annotations(pixels):
    stimuli = StimulusSet.from_images(pixels)
    changed = pixels.copy()
    changed[3, 2, 1, 0] ^= 1
    assert StimulusSet.from_images(changed).content_hash != stimuli.content_hash
    assert StimulusSet.from_images(list(pixels)).content_hash == stimuli.content_hash
    assert StimulusSet.from_images(np.asfortranarray(pixels)).content_hash == stimuli.content_hash
    assert StimulusSet.from_images(pixels, ids=list("abcde")).content_hash != stimuli.content_hash
    assert stimuli[::-1].content_hash != stimuli.content_hash
    assert stimuli[::-1][::-1].content_hash == stimuli.content_hash
    labelled = StimulusSet.from_images(pixels, table=pd.DataFrame({"a": range(5)}))
    assert labelled.content_hash == stimuli.content_hash
    assert labelled.table_hash != stimuli.table_hash
    # The same bytes in another shape are another image.
    assert StimulusSet.from_images(pixels.reshape(5, 6, 24, 3)).digests != stimuli.digests


def test_digests_of_a_subset_are_those_of_the_whole(pixels):
    stimuli = StimulusSet.from_images(pixels)
    fresh = stimuli[[3, 1]].digests
    assert stimuli.digests[3] == fresh[0]
    assert stimuli[[3, 1]].digests == fresh


def test_sizes_must_agree_or_be_given():
    small, large = np.zeros((4, 6, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    stimuli = StimulusSet.from_images([small, large])
    with pytest.raises(ValueError, match=r"6 x 4 .* 8 x 8"):
        stimuli.images()
    resized = stimuli.images(size=5)
    assert resized.shape == (2, 5, 5, 3)
    assert (resized[0] == 0).all() and (resized[1] == 200).all()


def test_resizing_is_antialiased():
    # A checkerboard of single pixels is grey from afar; picking pixels would give black or white.
    board = np.indices((64, 64)).sum(0) % 2 * 255
    stimuli = StimulusSet.from_images(board[None].astype(np.uint8))
    assert np.abs(stimuli.images(size=8)[0, 2:6, 2:6].astype(int) - 127.5).max() < 3


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path):
    ramp = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    image = StimulusSet.from_folder(tmp_path).images()[0]
    np.testing.assert_array_equal(image[..., 0], ramp >> 8)


def test_sentences_and_words():
    sentences = StimulusSet.from_sentences(["A cat.", "Ein Käfer."])
    assert sentences.ids == ("sentence-00001", "sentence-00002")
    assert sentences.texts(["sentence-00002"]) == ["Ein Käfer."]
    assert sentences.digests[1] == hashlib.sha256("Ein Käfer.".encode()).hexdigest()
    words = StimulusSet.from_words(["the", "cat", "the"], [0.1, 0.4, 0.9], runs=[1, 1, 2])
    assert words.texts() == ["the", "cat", "the"]
    assert words.ids[2] == "word-00003"
    assert list(words.table.columns) == ["word", "onset", "duration", "run"]
    assert list(words.table["run"]) == ["1", "1", "2"]
    assert words.table["duration"].isna().all()
    with pytest.raises(ValueError, match="onsets"):
        StimulusSet.from_words(["the", "cat"], [0.1])
    with pytest.raises(ValueError, match="list of strings"):
        StimulusSet.from_sentences("A cat.")
    with pytest.raises(ValueError, match="needs images"):
        sentences.images()
    with pytest.raises(ValueError, match="sentences or words"):
        StimulusSet.from_images(np.zeros((1, 2, 2, 3), np.uint8)).texts()


def test_sounds_from_arrays_and_wav(tmp_path):
    samples = (np.sin(np.arange(400) / 9) * 20000).astype(np.int16)
    wavfile.write(tmp_path / "tone.wav", 8000, samples)
    from_file, rate = StimulusSet.from_sounds([tmp_path / "tone.wav"]).sound(0)
    assert rate == 8000 and from_file.dtype == np.float32
    np.testing.assert_allclose(from_file, samples / 32768, atol=1e-7)
    stimuli = StimulusSet.from_sounds([samples, samples / 32768], sampling_rate=8000)
    for i in range(2):
        np.testing.assert_allclose(stimuli.sound(i)[0], samples / 32768, atol=1e-7)
    faster = StimulusSet.from_sounds([samples], sampling_rate=16000)
    assert faster.digests[0] != stimuli.digests[0]
    with pytest.raises(ValueError, match="sampling_rate"):
        StimulusSet.from_sounds([samples])
    (tmp_path / "bad.wav").write_bytes(b"RIFF....")
    with pytest.raises(ValueError, match=r"'bad' .*bad\.wav"):
        StimulusSet.from_sounds([tmp_path / "bad.wav"]).sound(0)


def test_table_is_joined_by_id_and_checked(pixels):
    ids = list("abcde")
    shuffled = pd.DataFrame({"n": [4, 0, 2, 1, 3]}, index=list("eacbd"))
    stimuli = StimulusSet.from_images(pixels, ids, shuffled)
    assert list(stimuli.table["n"]) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="4 rows for 5"):
        StimulusSet.from_images(pixels, ids, shuffled.iloc[:4])
    with pytest.raises(ValueError, match="index of table"):
        StimulusSet.from_images(pixels, ids, shuffled.set_axis(list("eacbx")))
    with pytest.raises(ValueError, match="not in the set, first 'x'"):
        StimulusSet.from_images(pixels, ids, objects=pd.DataFrame({"stimulus": ["a", "x"]}))
    with pytest.raises(ValueError, match="column 'stimulus'"):
        StimulusSet.from_images(pixels, ids, objects=pd.DataFrame({"x": [1]}))


def test_ids_must_be_unique_and_complete(pixels):
    with pytest.raises(ValueError, match="1 occur more than once, the first is 'a'"):
        StimulusSet.from_images(pixels, list("aabcd"))
    with pytest.raises(ValueError, match="4 names for 5"):
        StimulusSet.from_images(pixels, list("abcd"))
    with pytest.raises(ValueError, match="at least one"):
        StimulusSet.from_images([])


def test_all_sources_pickle(folder, tmp_path, pixels):
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["images"] = pixels
    ids = [f"im{i}" for i in range(5)]
    for stimuli in (
        StimulusSet.from_images(pixels, ids),
        StimulusSet.from_images(list(pixels), ids),
        StimulusSet.from_folder(folder),
        StimulusSet.from_zip(zipped(tmp_path / "images.zip", pixels)),
        StimulusSet.from_hdf5(tmp_path / "images.h5", ids=ids),
    ):
        stimuli.image(0)  # whatever reading leaves open must not be in the way
        copy = pickle.loads(pickle.dumps(stimuli[[4, 1]]))
        np.testing.assert_array_equal(copy.images(), pixels[[4, 1]])
        assert copy.content_hash == stimuli[[4, 1]].content_hash


def test_pickled_subset_of_an_array_carries_its_rows_only():
    stimuli = StimulusSet.from_images(np.zeros((500, 20, 20, 3), np.uint8))
    assert len(pickle.dumps(stimuli[:5])) < 20_000


def saved_bytes(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **options)
    return buffer.getvalue()


def test_modes_of_grey_are_the_same_from_memory_and_from_files(tmp_path):
    ramp = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    grey = {
        "I;16": (Image.fromarray(ramp), ramp >> 8),
        "I": (Image.fromarray((ramp >> 8).astype(np.int32)), ramp >> 8),
        "F": (Image.fromarray((ramp / 65535).astype(np.float32)), np.rint(ramp / 257)),
    }
    for mode, (image, expected) in grey.items():
        assert image.mode == mode
        (tmp_path / "a.tif").write_bytes(saved_bytes(image, "TIFF"))
        for stimuli in (StimulusSet.from_images([image]), StimulusSet.from_images([tmp_path / "a.tif"])):
            np.testing.assert_array_equal(stimuli.images()[0, ..., 0], expected, err_msg=mode)
    for values, words in ((np.full((4, 4), 300, np.int32), "from 300 to 300"), (np.full((4, 4), 2.0), "2 to 2")):
        image = Image.fromarray(values.astype(np.float32) if values.dtype.kind == "f" else values)
        with pytest.raises(ValueError, match=words):
            StimulusSet.from_images([image])
        (tmp_path / "a.tif").write_bytes(saved_bytes(image, "TIFF"))
        with pytest.raises(ValueError, match=f"'a' .*a\\.tif.*{words}"):
            StimulusSet.from_images([tmp_path / "a.tif"]).image(0)


def test_images_stand_upright(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    content = saved_bytes(Image.fromarray(pixels[0, :6]), exif=exif)
    (tmp_path / "a.png").write_bytes(content)
    expected = np.rot90(pixels[0, :6], -1)
    np.testing.assert_array_equal(StimulusSet.from_folder(tmp_path).images()[0], expected)
    np.testing.assert_array_equal(StimulusSet.from_images([Image.open(tmp_path / "a.png")]).images()[0], expected)


def test_one_image_is_no_stack(pixels):
    for one in (pixels[0], pixels[0] / 255, np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match="single image in a list"):
            StimulusSet.from_images(one)
    assert len(StimulusSet.from_images([pixels[0]])) == 1


def test_decoders_that_fail_name_stimulus_and_file(tmp_path, pixels, monkeypatch):
    (tmp_path / "big.png").write_bytes(png(pixels[0]))
    stimuli = StimulusSet.from_folder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(ValueError, match=r"'big' .*big\.png.*decompression bomb"):
            stimuli.image(0)
    monkeypatch.setattr(Image, "open", lambda file: 1 / 0)
    with pytest.raises(ValueError, match=r"'big' .*big\.png.*division"):
        stimuli.image(0)


def test_zip_members_that_are_no_images(tmp_path, pixels):
    path = zipped(tmp_path / "images.zip", pixels)
    with zipfile.ZipFile(path, "a") as archive:
        archive.mkdir("folder.png")
        archive.writestr("zz.png", png(pixels[0]), zipfile.ZIP_LZMA)
    stimuli = StimulusSet.from_zip(path)
    assert stimuli.ids == ("im0", "im1", "im2", "im3", "im4", "zz")
    with pytest.raises(ValueError, match=r"'zz' .*stored or deflated"):
        stimuli.image(5)


@pytest.mark.parametrize(("declared", "words"), [(600 * 2**20, "629145600 bytes"), (1000, "CRC")])
def test_zip_bombs_are_refused_by_name(tmp_path, declared, words):
    path = tmp_path / "bomb.zip"
    size = 64 * 2**20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(size))
    data = path.read_bytes().replace(size.to_bytes(4, "little"), declared.to_bytes(4, "little"))
    path.write_bytes(data)
    stimuli = StimulusSet.from_zip(path)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"'bomb' .*bomb\.png.*{words}"):
        stimuli.image(0)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_hdf5_values_in_other_files_are_refused(tmp_path, pixels):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = pixels
    (tmp_path / "raw.bin").write_bytes(pixels.tobytes())
    layout = h5py.VirtualLayout(pixels.shape, pixels.dtype)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "images", pixels.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", pixels.shape, np.uint8, external=[(str(tmp_path / "raw.bin"), 0, pixels.size)])
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "images")
    for key, words in (("virtual", "in other files"), ("raw", "in other files"), ("link", "unknown")):
        with pytest.raises(ValueError, match=words):
            StimulusSet.from_hdf5(tmp_path / "a.h5", key)


def test_images_one_by_one_open_an_archive_once(tmp_path, pixels, monkeypatch):
    from neuralign.datasets import sources

    opened = []
    plain = sources.open_zip
    monkeypatch.setattr(sources, "open_zip", lambda path: opened.append(path) or plain(path))
    stimuli = StimulusSet.from_zip(zipped(tmp_path / "images.zip", pixels))
    opened.clear()
    found = [np.asarray(image) for image in stimuli[[4, 0, 2]].iter_images()]
    np.testing.assert_array_equal(found, pixels[[4, 0, 2]])
    assert len(opened) == 1
    with pytest.raises(ValueError, match="needs images"):
        StimulusSet.from_sentences(["a"]).iter_images()


def test_annotations_of_another_type_have_another_hash(pixels):
    def hashed(values):
        return StimulusSet.from_images(pixels, table=pd.DataFrame({"a": values})).table_hash

    assert hashed([1, 2, 3, 4, 5]) != hashed(list("12345"))
    assert hashed(["a", None, "c", "d", "e"]) != hashed(["a", "", "c", "d", "e"])
    assert hashed(pd.Categorical(list("aabbc"))) == hashed(list("aabbc"))


@pytest.mark.parametrize("keep", [-100, 30, 50])
def test_wav_files_that_were_cut_are_refused(tmp_path, keep):
    wavfile.write(tmp_path / "tone.wav", 8000, np.arange(400, dtype=np.int16))
    (tmp_path / "tone.wav").write_bytes((tmp_path / "tone.wav").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"'tone' .*tone\.wav.*whole wav"):
        StimulusSet.from_sounds([tmp_path / "tone.wav"]).sound(0)


def test_relative_paths_outlive_a_change_of_folder(folder, tmp_path, pixels, monkeypatch):
    zipped(tmp_path / "images.zip", pixels)
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["images"] = pixels
    monkeypatch.chdir(tmp_path)
    sets = [StimulusSet.from_folder("."), StimulusSet.from_zip("images.zip"), StimulusSet.from_hdf5("images.h5")]
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    for stimuli in sets:
        np.testing.assert_array_equal(stimuli.images(), pixels)
