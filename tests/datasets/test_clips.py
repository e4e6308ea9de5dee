import hashlib
import io
import pickle
from fractions import Fraction

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neuralign.datasets import StimulusSet
from neuralign.datasets.storage import read_stimuli, write_stimuli


@pytest.fixture
def clips():
    return np.random.default_rng(0).integers(0, 256, (3, 5, 8, 6, 3), dtype=np.uint8)


def flags(n, size=(6, 8)):
    """Clips of one colour per frame, which a palette holds without loss."""
    colours = np.random.default_rng(1).integers(0, 256, (n, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (n, *size, 3)).copy()


def animation(path, frames, duration, **options):
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=duration, **options)


def test_clips_come_back_as_given(clips):
    stimuli = StimulusSet.from_clips(clips, fps=25)
    assert stimuli.ids == ("clip-00001", "clip-00002", "clip-00003") and stimuli.kind == "clip"
    frames, fps = stimuli.clip(-1)
    np.testing.assert_array_equal(frames, clips[2])
    assert fps == 25 and list(stimuli.table["fps"]) == [25, 25, 25]
    part = StimulusSet.from_clips(list(clips), fps=[10, 20, 29.97])[[2, 0]]
    np.testing.assert_array_equal(part.clip(0)[0], clips[2])
    assert part.clip(0)[1] == 29.97 and part.clip(1)[1] == 10
    assert np.isnan(StimulusSet.from_clips(clips).clip(0)[1])


def test_floats_and_grey(clips):
    grey = clips[0, ..., 0]
    for given in (grey, grey / 255):
        frames, _ = StimulusSet.from_clips([given]).clip(0)
        np.testing.assert_array_equal(frames, np.repeat(grey[..., None], 3, -1))
    frames, _ = StimulusSet.from_clips(clips / 255).clip(1)
    np.testing.assert_array_equal(frames, clips[1])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((5, 8, 6, 3), np.uint8), "single clip in a list"),
        (np.zeros((2, 5, 8, 6, 4), np.uint8), r"\(8, 6, 4\)"),
        (np.zeros((2, 0, 8, 6, 3), np.uint8), "without frames"),
        (np.zeros((2, 5, 8, 6, 3), np.int32), "int32"),
        ([np.zeros((3, 5, 8, 6), np.uint8)], r"clips\[0\] .*transpose\(1, 2, 3, 0\)"),
        ([np.zeros((5, 3, 8, 6), np.uint8)], r"clips\[0\] .*transpose\(0, 2, 3, 1\)"),
        ([np.zeros((5, 8, 6, 2), np.uint8)], r"\(8, 6, 2\)"),
        ([np.zeros((8, 6, 3), np.uint8)], r"clips\[0\] has shape \(8, 6, 3\)"),
        ([np.full((5, 8, 6, 3), 2.0)], r"clips\[0\] .*within \[0, 1\]"),
    ],
)
def test_what_is_no_clip_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        StimulusSet.from_clips(given)


@pytest.mark.parametrize("fps", [0, -1, np.nan, [25, 25], [25, 0, 25]])
def test_frame_rates_are_positive_and_one_per_clip(clips, fps):
    with pytest.raises(ValueError, match="fps"):
        StimulusSet.from_clips(clips, fps=fps)


def test_frame_rates_of_a_table(clips):
    table = pd.DataFrame({"fps": [24.0, 25, 30], "scene": list("abc")})
    assert StimulusSet.from_clips(clips, table=table).clip(2)[1] == 30
    with pytest.raises(ValueError, match="fps holds"):
        StimulusSet.from_clips(clips, table=table.assign(fps=[24, np.nan, 30]))


def test_animations_carry_their_rate(tmp_path):
    frames = flags(4)
    animation(tmp_path / "a.gif", frames, 40)
    animation(tmp_path / "b.webp", frames, [50, 50, 50, 250], lossless=True)
    np.save(tmp_path / "c.npy", frames)
    stimuli = StimulusSet.from_clips([tmp_path / name for name in ("a.gif", "b.webp", "c.npy")])
    assert stimuli.ids == ("a", "b", "c")
    for row, fps in enumerate((25, 10, np.nan)):
        found, rate = stimuli.clip(row)
        np.testing.assert_array_equal(found, frames, err_msg=stimuli.ids[row])
        np.testing.assert_equal(rate, fps)
    told = StimulusSet.from_clips([tmp_path / "a.gif"], fps=12)
    assert told.clip(0)[1] == 12
    assert stimuli.digests[0] == hashlib.sha256((tmp_path / "a.gif").read_bytes()).hexdigest()


def test_damaged_files_name_stimulus_and_file(tmp_path):
    animation(tmp_path / "a.gif", flags(4), 40)
    (tmp_path / "cut.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:-20])
    animation(tmp_path / "a.webp", flags(4), 40, lossless=True)
    (tmp_path / "torn.webp").write_bytes((tmp_path / "a.webp").read_bytes()[:-20])
    np.save(tmp_path / "flat.npy", np.zeros((4, 4), np.uint8))
    np.save(tmp_path / "code.npy", np.array([{"a": 1}], dtype=object))
    for name, words in (
        ("cut.gif", "cut off"),
        ("torn.webp", "cut off"),
        ("flat.npy", "shape"),
        ("code.npy", "whole clip.*pickle"),
    ):
        with pytest.raises(ValueError, match=rf"{name.partition('.')[0]}' .*{name}.*{words}"):
            StimulusSet.from_clips([tmp_path / name]).clip(0)
    with pytest.raises(ValueError, match=r"a\.txt.*\.npy"):
        (tmp_path / "a.txt").write_text("no clip")
        StimulusSet.from_clips([tmp_path / "a.txt"])
    with pytest.raises(FileNotFoundError, match="absent"):
        StimulusSet.from_clips([tmp_path / "none.gif"])
    with pytest.raises(ValueError, match="mixes"):
        StimulusSet.from_clips([tmp_path / "a.gif", flags(2)])


def test_video_files_name_the_extra(tmp_path):
    try:
        import av  # noqa: F401
    except ImportError:
        (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom")
        with pytest.raises(ImportError, match=r"neuralign\[video\]"):
            StimulusSet.from_clips([tmp_path / "a.mp4"]).clip(0)
    else:
        pytest.skip("PyAV is installed")


def test_video_files(tmp_path):
    av = pytest.importorskip("av")
    frames = np.repeat(np.arange(0, 240, 40, dtype=np.uint8)[:, None, None, None], 3, -1) + np.zeros(
        (6, 32, 32, 3), np.uint8
    )
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25))
        stream.width = stream.height = 32
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    found, fps = StimulusSet.from_clips([tmp_path / "a.mp4"]).clip(0)
    assert fps == 25 and found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).max() < 12  # the codec loses some


def test_hash_follows_content(clips):
    stimuli = StimulusSet.from_clips(clips)
    assert StimulusSet.from_clips(list(clips)).content_hash == stimuli.content_hash
    changed = clips.copy()
    changed[1, 4, 0, 0, 0] ^= 1
    assert StimulusSet.from_clips(changed).content_hash != stimuli.content_hash
    assert StimulusSet.from_clips(clips[:, ::-1]).content_hash != stimuli.content_hash
    # A clip of one frame is not the image of that frame, even where the values are.
    assert StimulusSet.from_clips(clips[:, :1]).content_hash != StimulusSet.from_images(clips[:, 0]).content_hash


def test_clips_are_stored_and_travel(clips, tmp_path):
    for given in (clips, [clips[0], clips[1, :2], clips[2, :, :4]]):
        stimuli = StimulusSet.from_clips(given, fps=29.97)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            write_stimuli(file, stimuli)
        with h5py.File(tmp_path / "a.h5") as file:
            read = read_stimuli(file["stimuli"], lazy=False)
        for other in (read, pickle.loads(pickle.dumps(stimuli))):
            assert other.content_hash == stimuli.content_hash and other.kind == "clip"
            for row in range(3):
                np.testing.assert_array_equal(other.clip(row)[0], given[row])
                assert other.clip(row)[1] == 29.97


def test_other_kinds_have_no_clips(clips):
    with pytest.raises(ValueError, match="needs clips; these stimuli are images"):
        StimulusSet.from_images(clips[0]).clip(0)
    with pytest.raises(ValueError, match="needs images; these stimuli are clips"):
        StimulusSet.from_clips(clips).image(0)


def test_known_digests_are_not_read_again(tmp_path):
    files = []
    for i, frames in enumerate(flags(3)):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(frames).save(files[-1])
    expected = StimulusSet.from_images(files).digests
    stimuli, asked = StimulusSet.from_images(files), []
    files[0].unlink()

    def known(path):
        asked.append(path)
        return expected[0] if path == files[0] else None

    assert stimuli.digests_by(known) == expected == stimuli.digests
    assert asked == files
    arrays = StimulusSet.from_images(flags(3))
    assert arrays.digests_by(known) == arrays.digests
    assert len(asked) == 3


def test_sound_files_that_are_no_wav_name_the_extra(tmp_path):
    try:
        import soundfile
    except ImportError:
        (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(50))
        with pytest.raises(ImportError, match=r"neuralign\[audio\]"):
            StimulusSet.from_sounds([tmp_path / "a.flac"]).sound(0)
    else:
        samples = np.sin(np.arange(800) / 7).astype(np.float32) / 2
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, 8000, format="FLAC")
        (tmp_path / "a.flac").write_bytes(buffer.getvalue())
        found, rate = StimulusSet.from_sounds([tmp_path / "a.flac"]).sound(0)
        assert rate == 8000
        np.testing.assert_allclose(found, samples, atol=1e-4)
