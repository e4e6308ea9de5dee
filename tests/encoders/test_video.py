import json

import numpy as np
import pytest
import torch
from PIL import Image

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract
from neuralign.encoders.features.adapters.video import (
    ClipInputs,
    FrameInputs,
    VideoEncoder,
    clip_frames,
    clip_inputs,
    on_frames,
    sample_frames,
    video_model,
)
from neuralign.encoders.features.registry import Model
from neuralign.encoders.features.vision import ImageInputs

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SETTINGS = {
    "size": {"shortest_edge": 20},
    "crop_size": {"height": 16, "width": 16},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


@pytest.fixture
def stimuli():
    rng = np.random.default_rng(0)
    return StimulusSet.from_clips([rng.integers(0, 256, (n, 24, 30, 3), dtype=np.uint8) for n in (8, 8, 8)], fps=10)


@pytest.fixture(scope="module")
def families():
    from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    videomae = VideoMAEConfig(**WIDTH, intermediate_size=48, image_size=16, patch_size=8, num_frames=4)
    vjepa2 = VJEPA2Config(
        **WIDTH,
        crop_size=16,
        patch_size=8,
        frames_per_clip=4,
        pred_hidden_size=32,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    return {"videomae": VideoMAEModel(videomae).eval(), "vjepa2": VJEPA2Model(vjepa2).eval()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("video")
    (path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return str(path)


@pytest.fixture(params=["videomae", "vjepa2"])
def kind(request):
    return request.param


def plain(kind, module, pixels):
    """Last hidden state without anything of ours but the preprocessed clips."""
    with torch.no_grad():
        if kind == "vjepa2":
            return module(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state.numpy()
        return module(pixel_values=pixels).last_hidden_state.numpy()


def test_sampled_frames():
    np.testing.assert_array_equal(sample_frames(16, 16), np.arange(16))
    np.testing.assert_array_equal(sample_frames(9, 3), [0, 4, 8])
    np.testing.assert_array_equal(sample_frames(2, 4), [0, 0, 1, 1])
    np.testing.assert_array_equal(sample_frames(1, 3), [0, 0, 0])
    np.testing.assert_array_equal(sample_frames(100, 4, fps=30, rate=10), [0, 3, 6, 9])
    np.testing.assert_array_equal(sample_frames(100, 4, fps=25, rate=10), [0, 2, 5, 7])
    np.testing.assert_array_equal(sample_frames(5, 4, fps=30, rate=10), [0, 3, 4, 4])
    with pytest.raises(ValueError, match="give fps="):
        sample_frames(5, 4, rate=10)


def test_preprocessing_equals_that_of_transformers(stimuli):
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    settings = {**SETTINGS, "crop_size": {"height": 16, "width": 14}}
    inputs = clip_inputs(settings, "videomae", frames=8, tubelet=2, key="pixel_values")
    [(rows, batch)] = inputs.batches(stimuli, 3)
    expected = VideoMAEImageProcessorPil(**settings)(
        [list(stimuli.clip(row)[0]) for row in range(3)], return_tensors="pt"
    )["pixel_values"]
    assert rows == [0, 1, 2] and batch["pixel_values"].shape == (3, 8, 3, 16, 14)
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-5, rtol=0)


def test_settings_of_both_families():
    for kind, crop, shortest in (("videomae", 224, 224), ("vjepa2", 256, 292)):
        inputs = clip_inputs({}, kind, frames=16, tubelet=2, key="x")
        assert (inputs.size, inputs.shortest, inputs.resample) == ((crop, crop), shortest, "bilinear")
    assert inputs.mean == (0.485, 0.456, 0.406)
    whole = {"size": {"height": 8, "width": 6}, "do_center_crop": False}
    inputs = clip_inputs({**SETTINGS, **whole}, "videomae", frames=2, tubelet=2, key="x")
    assert (inputs.size, inputs.shortest) == ((8, 6), None)
    bare = clip_inputs({"do_rescale": False, "do_normalize": False}, "videomae", frames=2, tubelet=2, key="x")
    assert (bare.scale, bare.mean, bare.std) == (1.0, (0.0,) * 3, (1.0,) * 3)
    for odd in ({"do_center_crop": False}, {"do_resize": False}, {"size": {"height": 8, "width": 6}}):
        with pytest.raises(ValueError, match="preprocessing"):
            clip_inputs({**SETTINGS, **odd}, "videomae", frames=2, tubelet=2, key="x")


def test_extracted_layers_are_those_of_a_plain_pass(kind, families, folder, stimuli):
    module = families[kind]
    model = video_model("tiny", module, folder)
    [(_, batch)] = model.inputs.batches(stimuli, 3)
    last = plain(kind, module, batch[model.inputs.key])
    features = extract(model, stimuli, layers="all", cache=False, batch_size=2)
    np.testing.assert_allclose(features["output"], last, atol=1e-5)
    assert "encoder.layer.0" in features.layers and not any("predictor" in layer for layer in features.layers)
    assert features["encoder.layer.1"].shape == (3, 2 * 2 * 2, 32)
    alone = extract(model, stimuli[[1]], layers="encoder.layer.1", cache=False)
    np.testing.assert_allclose(alone["encoder.layer.1"], features["encoder.layer.1"][1:2], atol=1e-5)
    blocks = extract(model, stimuli, cache=False).layers
    assert blocks == ["encoder.layer.0", "encoder.layer.1"]


def test_tokens_are_where_the_clock_says(kind, families, folder, stimuli):
    """Two frames are changed: the patches that change are those of their time."""
    model = video_model("tiny", families[kind], folder)
    clips = np.stack([stimuli.clip(row)[0] for row in range(3)])[:, ::2]  # four frames, all shown
    changed = clips.copy()
    changed[:, 2:4] ^= 255
    embedding = "embeddings.patch_embeddings" if kind == "videomae" else "encoder.embeddings.patch_embeddings"
    before, after = (StimulusSet.from_clips(array, fps=5) for array in (clips, changed))
    found = [extract(model, one, layers=embedding, cache=False)[embedding] for one in (before, after)]
    moved = np.abs(found[0] - found[1]).max((0, 2)) > 1e-4
    times = model.clock(embedding, found[0].shape[1:], before)
    assert times.shape == (8,)
    np.testing.assert_allclose(np.unique(times), [0.2, 0.6])  # frames of 0.2 s, two of them each
    np.testing.assert_array_equal(moved, times > 0.4)


def test_a_folder_becomes_a_model(kind, families, stimuli, tmp_path):
    families[kind].save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    built = video_model("tiny", families[kind], str(tmp_path))
    for name in ("output", "encoder.layer.1"):
        found, expected = (extract(model, stimuli, layers=name, cache=False) for model in (str(tmp_path), built))
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    np.testing.assert_allclose(np.unique(found.times["encoder.layer.1"]), built.inputs.times(stimuli))
    random = [
        extract(model, stimuli, "output", untrained=True, seed=7, cache=False) for model in (str(tmp_path), built)
    ]
    assert all(np.abs(one["output"] - expected_of(built, stimuli)).max() > 1e-3 for one in random)


def expected_of(model, stimuli):
    return extract(model, stimuli, "output", cache=False)["output"]


def test_places_and_time_are_pooled_apart(kind, families, folder, stimuli):
    model = video_model("tiny", families[kind], folder)
    layer = "encoder.layer.1"
    whole = extract(model, stimuli, layer, cache=False)[layer].reshape(3, 2, 2, 2, 32)  # time, height, width
    for reduce, expected in ((1, whole.mean((2, 3))), ("mean", whole.mean((1, 2, 3)))):
        np.testing.assert_allclose(extract(model, stimuli, layer, reduce, cache=False)[layer], expected, atol=1e-5)
    halves = extract(model, stimuli, layer, "time:1", cache=False)[layer]
    np.testing.assert_allclose(halves.reshape(3, -1, 32).mean(1), whole.mean((1, 2, 3)), atol=1e-5)
    with pytest.raises(ValueError, match="none"):
        extract(model, stimuli, layer, "cls", cache=False)


def test_damaged_clips_are_left_out_when_asked(families, folder, tmp_path):
    files = []
    for i in range(4):
        colours = np.random.default_rng(i).integers(0, 256, (4, 1, 1, 3), dtype=np.uint8).repeat(20, 1).repeat(20, 2)
        first, *rest = [Image.fromarray(frame) for frame in colours]
        files.append(tmp_path / f"c{i}.gif")
        first.save(files[-1], save_all=True, append_images=rest, duration=100)
    for i in (0, 2):
        files[i].write_bytes(files[i].read_bytes()[:-9])
    stimuli = StimulusSet.from_clips(files)
    model = video_model("tiny", families["videomae"], folder)
    frames = on_frames(Model("net", Net(), ImageInputs((12, 12))), 3)
    for one in (model, frames):
        with pytest.raises(ValueError, match=r"'c0' .*c0\.gif.*cut off"):
            extract(one, stimuli, "output", cache=False)
        with pytest.warns(UserWarning, match="c0.*c2"):
            kept = extract(one, stimuli, "output", cache=False, on_error="skip")
        assert kept.stimulus_ids == ("c1", "c3")
        expected = extract(one, stimuli[[1, 3]], "output", cache=False)["output"]
        np.testing.assert_allclose(kept["output"], expected, atol=1e-5)


def test_a_second_run_reads_the_store(families, folder, stimuli, tmp_path, monkeypatch):
    model = video_model("tiny", families["videomae"], folder)
    first = extract(model, stimuli, cache=tmp_path)
    monkeypatch.setattr(type(model.module), "forward", lambda *a, **k: pytest.fail("the model ran again"))
    again = extract(model, stimuli, cache=tmp_path)
    assert again.times.keys() == first.times.keys() == set(first.layers)
    for layer in first.layers:
        np.testing.assert_array_equal(first[layer], again[layer])
        np.testing.assert_array_equal(first.times[layer], again.times[layer])


def test_common_times_only(families, folder, stimuli, tmp_path):
    inputs = video_model("tiny", families["videomae"], folder).inputs
    np.testing.assert_allclose(inputs.times(stimuli), [(0.05 + 0.25) / 2, (0.55 + 0.75) / 2])  # frames 0, 2, 5, 7
    assert inputs.times(StimulusSet.from_clips([stimuli.clip(0)[0]])) is None
    animation = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 80, 160, 240)]
    animation[0].save(tmp_path / "a.gif", save_all=True, append_images=animation[1:], duration=100)
    np.testing.assert_allclose(inputs.times(StimulusSet.from_clips([tmp_path / "a.gif"])), [0.1, 0.3])
    assert inputs.times(StimulusSet.from_clips([stimuli.clip(0)[0]] * 2, fps=[10, 20])) is None
    assert inputs.times(StimulusSet.from_clips([stimuli.clip(0)[0], stimuli.clip(0)[0][:5]], fps=10)) is None
    assert inputs.clock("pooled", (32,), stimuli) is None
    assert inputs.clock("odd", (7, 32), stimuli) is None
    np.testing.assert_allclose(inputs.clock("map", (6, 2, 1, 2), stimuli), np.repeat(inputs.times(stimuli), 2))


def test_rate_reads_frames_by_their_time(stimuli):
    inputs = ClipInputs((24, 30), 4, rate=5, tubelet=2)
    np.testing.assert_array_equal(inputs.decode(stimuli, [1])[0], stimuli.clip(1)[0][[0, 2, 4, 6]])
    np.testing.assert_allclose(inputs.times(stimuli), [0.15, 0.55])
    twice = StimulusSet.from_clips([stimuli.clip(row)[0] for row in range(3)], fps=20)
    assert inputs.digest(twice) != inputs.digest(stimuli)  # other frames are read
    assert twice.content_hash == stimuli.content_hash
    with pytest.raises(ValueError, match="clip-00001.*give fps="):
        inputs.decode(StimulusSet.from_clips([stimuli.clip(0)[0]]), [0])


def test_spec_tells_every_constant():
    base = ClipInputs((16, 16), 4)
    others = [
        ClipInputs((16, 18), 4),
        ClipInputs((16, 16), 8),
        ClipInputs((16, 16), 4, shortest=20),
        ClipInputs((16, 16), 4, mean=(0.1, 0, 0)),
        ClipInputs((16, 16), 4, std=(0.9, 1, 1)),
        ClipInputs((16, 16), 4, scale=1.0),
        ClipInputs((16, 16), 4, rate=4.0),
        ClipInputs((16, 16), 4, resample="bicubic"),
    ]
    specs = [json.dumps(dict(one.spec()), default=str) for one in (base, *others)]
    assert len(set(specs)) == len(specs)


def test_models_of_video_refuse_what_is_none(families, folder, tmp_path):
    from transformers import VideoMAEConfig, VideoMAEModel

    model = video_model("tiny", families["videomae"], folder)
    with pytest.raises(ValueError, match="kind 'clip'"):
        extract(model, StimulusSet.from_images(np.zeros((2, 8, 8, 3), np.uint8)), cache=False)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        video_model("tiny", families["videomae"], str(tmp_path))
    grey = VideoMAEConfig(**WIDTH, intermediate_size=48, image_size=16, patch_size=8, num_frames=4, num_channels=1)
    with pytest.raises(ValueError, match="1 channels"):
        video_model("tiny", VideoMAEModel(grey), folder)


def test_redrawn_encoder_is_random_by_the_seed(families):
    encoder = VideoEncoder(families["vjepa2"])
    drawn = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn.append(encoder.redrawn().state_dict())
    assert drawn[0].keys() == encoder.state_dict().keys()
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    name = "encoder.embeddings.patch_embeddings.proj.weight"
    assert not torch.equal(drawn[0][name], drawn[2][name])
    assert not torch.equal(drawn[0][name], encoder.state_dict()[name])


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, 2)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_images_models_average_over_frames(stimuli, size):
    model = Model("net", Net(), ImageInputs((12, 12)))
    features = extract(on_frames(model, 5), stimuli, layers=["conv", "output"], cache=False, batch_size=size)
    shown = clip_frames(stimuli, 5)
    each = extract(model, shown, layers=["conv", "output"], cache=False)
    for layer in ("conv", "output"):
        expected = each[layer].reshape(3, 5, *each[layer].shape[1:]).mean(1)
        np.testing.assert_allclose(features[layer], expected, atol=1e-5)
    assert features.stimulus_ids == stimuli.ids
    pooled = extract(on_frames(model, 5), stimuli, layers="conv", reduce="mean", cache=False)
    np.testing.assert_allclose(pooled["conv"], features["conv"].mean(1), atol=1e-5)


def test_frames_as_images(stimuli):
    shown = clip_frames(stimuli, 3)
    assert (
        shown.kind == "image"
        and len(shown) == 9
        and shown.ids[:4]
        == (
            "clip-00001@1",
            "clip-00001@2",
            "clip-00001@3",
            "clip-00002@1",
        )
    )
    np.testing.assert_array_equal(shown.images()[4], stimuli.clip(1)[0][4])
    assert list(shown.table["frame"][:3]) == [0, 4, 7]
    np.testing.assert_allclose(shown.table["time"][:3], [0.05, 0.45, 0.75])
    assert list(shown.table["clip"][::3]) == list(stimuli.ids)


def test_frame_models_say_what_they_read(stimuli):
    model = Model("net", Net(), ImageInputs((12, 12)))
    first, second = on_frames(model, 5), on_frames(model, 6)
    assert dict(first.inputs.spec()) != dict(second.inputs.spec())
    other = FrameInputs(ImageInputs((12, 12), mean=(0.1, 0, 0)), 5)
    assert dict(first.inputs.spec()) != dict(other.spec())
    changed = StimulusSet.from_clips([255 - stimuli.clip(row)[0] for row in range(3)], fps=10)
    assert first.inputs.digest(stimuli) != first.inputs.digest(changed)
    with pytest.raises(ValueError, match="frames=0"):
        on_frames(model, 0)
    with pytest.raises(ValueError, match="reads clips already"):
        on_frames(first)
    with pytest.raises(ValueError, match="kind 'clip'"):
        extract(first, StimulusSet.from_images([np.zeros((8, 8, 3), np.uint8)]), cache=False)


def test_animations_go_through(tmp_path, families, folder):
    colours = np.random.default_rng(0).integers(0, 256, (6, 1, 1, 3), dtype=np.uint8) + np.zeros(
        (6, 20, 20, 3), np.uint8
    )
    first, *rest = [Image.fromarray(frame) for frame in colours]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=100)
    model = video_model("tiny", families["vjepa2"], folder)
    found = extract(model, StimulusSet.from_clips([tmp_path / "a.gif"]), layers="output", cache=False)["output"]
    expected = extract(model, StimulusSet.from_clips([colours]), layers="output", cache=False)["output"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
