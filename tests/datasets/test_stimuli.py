import hashlib
import io
import pickle
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
