import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract
from neuralign.encoders.features.adapters.audio import (
    SoundInputs,
    audio_model,
    resampled,
    right_edge,
    sound_windows,
)

RATE = 16000
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 20,
    "conv_dim": (24, 24, 24),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


# Samples that one frame sees.
FIELDS = {"feature_extractor.conv_layers.0": 10, "feature_extractor.conv_layers.1": 45, "feature_projection": 105}


def noise(n, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, n).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import Wav2Vec2FeatureExtractor

    path = tmp_path_factory.mktemp("speech")
    Wav2Vec2FeatureExtractor().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def speech(folder):
    """wav2vec 2.0 and HuBERT, with both kinds of norm."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    layer = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    modules = {
        "wav2vec2": Wav2Vec2Model(Wav2Vec2Config(**SPEECH)),
        "wav2vec2-layer": Wav2Vec2Model(Wav2Vec2Config(**SPEECH, **layer)),
        "hubert": HubertModel(HubertConfig(**SPEECH)),
        "hubert-layer": HubertModel(HubertConfig(**SPEECH, **layer)),
    }
    return {name: audio_model(name, module.eval(), folder) for name, module in modules.items()}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    path = tmp_path_factory.mktemp("whisper")
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    extractor.save_pretrained(path)
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        num_mel_bins=16,
        max_source_positions=50,
        vocab_size=60,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
    )
    module = WhisperModel(config).eval()
    return audio_model("whisper", module, str(path)), module, extractor


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# ------------------------------------------------------------------------------------------------ samples


def test_resampling_keeps_what_both_rates_can_hold():
    for rate in (44100, 8000, 22050):
        seconds = np.arange(rate) / rate
        found = resampled(np.sin(2 * np.pi * 440 * seconds), rate, RATE)
        assert found.shape == (RATE,) and found.dtype == np.float32
        expected = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
        assert np.abs(found - expected)[800:-800].max() < 5e-3
    above = np.sin(2 * np.pi * 12000 * np.arange(44100) / 44100)  # above half of 16 kHz: it must not fold down
    assert np.abs(resampled(above, 44100, RATE))[800:-800].max() < 1e-2


def test_channels_are_averaged_and_lengths_foretold():
    stereo = np.stack([noise(4411), noise(4411, 1)], 1)
    np.testing.assert_allclose(resampled(stereo, RATE, RATE), stereo.mean(1), atol=1e-7)
    for rate in (44100, 11025, 8000, RATE):
        inputs = SoundInputs(RATE)
        stimuli = StimulusSet.from_sounds([stereo], rate)
        assert inputs.length(stimuli, 0) == len(inputs.samples(stimuli, 0))


def test_normalisation_equals_that_of_transformers():
    from transformers import Wav2Vec2FeatureExtractor

    sound = 3 * noise(5000) + 0.5
    [(rows, batch)] = SoundInputs().batches(StimulusSet.from_sounds([sound], RATE), 4)
    expected = Wav2Vec2FeatureExtractor()([sound], sampling_rate=RATE, return_tensors="pt")["input_values"]
    assert rows == [0]
    torch.testing.assert_close(batch["input_values"], expected, atol=1e-6, rtol=0)
    [(_, batch)] = SoundInputs(normalise=False).batches(StimulusSet.from_sounds([sound], RATE), 4)
    np.testing.assert_array_equal(batch["input_values"][0].numpy(), sound)


# --------------------------------------------------------------------------------------- wav2vec 2.0, HuBERT


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-layer", "hubert", "hubert-layer"])
def test_layers_are_those_of_a_plain_pass(speech, name):
    model = speech[name]
    sounds = [noise(3000, seed) for seed in range(3)]
    with torch.no_grad():
        scaled = torch.from_numpy(np.stack([(x - x.mean()) / x.std() for x in sounds]))
        plain = model.module(scaled, output_hidden_states=True)
    stimuli = StimulusSet.from_sounds(sounds, RATE)
    names = ["encoder.layers.0", "encoder.layers.1", "output"]
    features = extract(model, stimuli, layers=names, reduce="time:1000", cache=False)
    for layer, hidden in zip(names[:2], plain.hidden_states[1:], strict=True):
        if layer.endswith("1") and name.endswith("layer"):
            continue  # the last entry is normalised where the norm comes first
        assert relative(features[layer], hidden.numpy()) < 1e-4
    assert relative(features["output"], plain.last_hidden_state.numpy()) < 1e-4
    assert extract(model, stimuli, cache=False).layers == names[:2]
    ends = relative(features["encoder.layers.1"], features["output"])
    assert ends > 0.01 if name.endswith("layer") else ends < 1e-6
    assert ("not normalised" in model.norm) == name.endswith("layer")


def test_silence_behind_a_sound_would_change_it(speech):
    """Why sounds of different length never share a batch, and that they do not."""
    model = speech["wav2vec2"]
    short, long = noise(3000), noise(9000, 1)
    scaled = torch.from_numpy((short - short.mean()) / short.std())
    padded = torch.nn.functional.pad(scaled, (0, 6000))
    mask = (torch.arange(9000) < 3000)[None].long()
    with torch.no_grad():
        alone = model.module(scaled[None]).last_hidden_state[0].numpy()
        for given in ({}, {"attention_mask": mask}):
            beside = model.module(padded[None], **given).last_hidden_state[0, : len(alone)].numpy()
            assert relative(beside, alone) > 0.05
    stimuli = StimulusSet.from_sounds([long, short, long[::-1].copy(), short[::-1].copy()], RATE)
    for size in (1, 2, 64):
        features = extract(model, stimuli, layers="output", batch_size=size, cache=False)["output"]
        assert relative(features[1], alone.mean(0)) < 1e-4
        for row in range(4):
            one = extract(model, stimuli[[row]], layers="output", cache=False)["output"]
            assert relative(features[[row]], one) < 1e-4
    lengths = [{x.shape[1] for x in batch.values()} for _, batch in model.inputs.batches(stimuli, 64)]
    assert lengths == [{3000}, {9000}]
    rows = [row for batch, _ in model.inputs.batches(stimuli, 1, [3, 0, 1]) for row in batch]
    assert sorted(rows) == [0, 1, 3]


@pytest.mark.parametrize(("layer", "field"), FIELDS.items())
def test_frames_are_when_the_clock_says(speech, layer, field):
    """Some samples are changed: the frames that change are those whose field holds one of them."""
    model = speech["wav2vec2-layer"]
    model = replace(model, inputs=replace(model.inputs, normalise=False))
    sound, first, last = noise(3000), 1500, 1510
    changed = sound.copy()
    changed[first:last] += 1
    found = [
        extract(model, StimulusSet.from_sounds([one], RATE), layers=layer, reduce="time:10000", cache=False)[layer]
        for one in (sound, changed)
    ]
    moved = np.abs(found[0] - found[1])[0].max(1) > 1e-6
    middle = model.clock(layer, found[0].shape[1:], None) * RATE
    np.testing.assert_array_equal(moved, (middle - field / 2 < last) & (middle + field / 2 > first))
    assert 0 < moved.sum() < len(moved)
    assert model.clock("output", (32,), None) is None


def test_sounds_that_are_too_short_are_named(speech):
    stimuli = StimulusSet.from_sounds([noise(3000), noise(60)], RATE, ids=["ok", "click"])
    with pytest.raises(ValueError, match="'click' has 60 samples at 16000 Hz.*at least 105"):
        extract(speech["wav2vec2"], stimuli, cache=False)
    assert extract(speech["wav2vec2"], StimulusSet.from_sounds([noise(105)], RATE), cache=False).stimulus_ids
    with pytest.raises(ValueError, match="kind 'sound'"):
        extract(speech["wav2vec2"], StimulusSet.from_sentences(["a"]), cache=False)


def test_what_is_read_is_in_the_key(speech):
    specs = [SoundInputs(), SoundInputs(8000), SoundInputs(normalise=False)]
    assert len({json.dumps(dict(one.spec())) for one in specs}) == 3
    assert dict(right_edge(speech["wav2vec2"], 2).inputs.spec()) != dict(
        right_edge(speech["wav2vec2"], 3).inputs.spec()
    )


def test_missing_preprocessing_names_its_file(speech, tmp_path):
    for name in ("wav2vec2", "hubert"):
        with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
            audio_model("tiny", speech[name].module, str(tmp_path))


# ------------------------------------------------------------------------------------------------- Whisper


@pytest.mark.parametrize(("samples", "frames"), [(8000, 25), (8001, 26), (7900, 25), (320, 1), (16000, 50)])
def test_whisper_keeps_the_frames_of_the_sound(whisper, samples, frames):
    model, module, extractor = whisper
    sound = noise(samples)
    read = extractor([sound], sampling_rate=RATE, return_tensors="pt")["input_features"]
    with torch.no_grad():
        expected = module.encoder(read, output_hidden_states=True)
    stimuli = StimulusSet.from_sounds([sound], RATE)
    features = extract(model, stimuli, layers=["layers.0", "output"], reduce="time:1000", cache=False)
    assert features["output"].shape == (1, frames, 32)
    np.testing.assert_allclose(features["output"], expected.last_hidden_state[:, :frames], atol=1e-5)
    np.testing.assert_allclose(features["layers.0"], expected.hidden_states[1][:, :frames], atol=1e-5)
    mean = extract(model, stimuli, layers="output", cache=False)["output"]
    np.testing.assert_allclose(mean, expected.last_hidden_state[:, :frames].mean(1), atol=1e-5)


def test_sounds_of_all_lengths_share_a_run_of_whisper(whisper):
    model, _, _ = whisper
    stimuli = StimulusSet.from_sounds([noise(n, n) for n in (9000, 500, 8990, 16000, 510)], RATE)
    together = extract(model, stimuli, cache=False, batch_size=4)
    assert together.layers == ["layers.0", "layers.1"]
    for row in range(5):
        alone = extract(model, stimuli[[row]], cache=False)
        np.testing.assert_allclose(together["layers.1"][[row]], alone["layers.1"], atol=1e-5)
    with pytest.raises(ValueError, match="reduce="):
        extract(model, stimuli, reduce="time:1000", cache=False)


def test_frames_of_whisper_are_when_the_clock_says(whisper):
    model, _, _ = whisper
    sound = noise(12000)
    changed = sound.copy()
    changed[6000:6100] *= 0.5  # softer: the loudest bin, to which all are scaled, stays
    for layer, reach in (("conv1", 1), ("conv2", 2)):
        found = [
            extract(model, StimulusSet.from_sounds([one], RATE), layers=layer, reduce="time:1000", cache=False)[layer]
            for one in (sound, changed)
        ]
        times = model.clock(layer, found[0].shape[1:], None)
        assert times[-1] < 12000 / RATE
        moved = np.abs(found[0] - found[1])[0].max(1) > 1e-6
        window = (200 + reach * 160) / RATE  # half a window of the spectrogram, and columns that convolutions see
        inside = (times > 6000 / RATE - window) & (times < 6100 / RATE + window)
        assert moved.any() and not moved[~inside].any()
        assert moved[(times > 6000 / RATE) & (times < 6100 / RATE)].all()


def test_whisper_refuses_what_it_cannot_read(whisper, tmp_path):
    from transformers import WhisperFeatureExtractor

    model, module, _ = whisper
    with pytest.raises(ValueError, match=r"'long' lasts 1\.25 s.*sound_windows"):
        extract(model, StimulusSet.from_sounds([noise(20000)], RATE, ids=["long"]), cache=False)
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="16 bins and 100 frames.*80 bins and 3000 frames"):
        audio_model("tiny", module, str(tmp_path))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        audio_model("tiny", module, str(tmp_path))


def test_whisper_foretells_the_shape_of_rows(whisper):
    model, _, _ = whisper
    inputs = model.inputs.reading(StimulusSet.from_sounds([noise(8001)], RATE))
    assert inputs.row_shape("layers.0", (50, 32)) == (26, 32)
    assert inputs.row_shape("conv1", (100, 32)) == (51, 32)
    assert inputs.row_shape("pooled", (32,)) == (32,)
    assert dict(inputs.spec()) == dict(model.inputs.spec())
    edge = right_edge(model, 3).inputs.reading(StimulusSet.from_sounds([noise(600)], RATE))
    assert edge.row_shape("layers.0", (50, 32)) == (2, 32)
    for name, value in (("context", (1, 2)), ("pool", "last")):
        with pytest.raises(ValueError, match=name):
            extract(model, StimulusSet.from_sounds([noise(2000)], RATE), cache=False, **{name: value})


def unreadable(folder, n=5):
    """Wav files of which the first and the fourth were cut off."""
    for i in range(n):
        wavfile.write(folder / f"s{i}.wav", RATE, noise(4000, i))
        if i in (0, 3):
            (folder / f"s{i}.wav").write_bytes((folder / f"s{i}.wav").read_bytes()[:-500])
    return StimulusSet.from_sounds([folder / f"s{i}.wav" for i in range(n)])


def test_unreadable_sounds_are_left_out_when_asked(speech, whisper, tmp_path):
    stimuli = unreadable(tmp_path)
    for model in (speech["hubert"], whisper[0]):
        with pytest.raises(ValueError, match=r"'s0' .*s0\.wav.*whole wav"):
            extract(model, stimuli, layers="output", cache=False)
        with pytest.warns(UserWarning, match="s0.*s3"):
            kept = extract(model, stimuli, layers="output", cache=False, on_error="skip")
        assert kept.stimulus_ids == ("s1", "s2", "s4")
        expected = extract(model, stimuli[[1, 2, 4]], layers="output", cache=False)["output"]
        np.testing.assert_allclose(kept["output"], expected, atol=1e-5)


def test_a_second_run_reads_the_store(whisper, tmp_path, monkeypatch):
    model, _, _ = whisper
    stimuli = StimulusSet.from_sounds([noise(8000), noise(8000, 1)], RATE)
    first = extract(model, stimuli, reduce="time:1000", cache=tmp_path)
    monkeypatch.setattr(type(model.module), "forward", lambda *a, **k: pytest.fail("the model ran again"))
    again = extract(model, stimuli, reduce="time:1000", cache=tmp_path)
    for layer in first.layers:
        np.testing.assert_array_equal(first[layer], again[layer])


def test_folders_become_models(speech, whisper, tmp_path):
    from transformers import Wav2Vec2FeatureExtractor

    model, module, extractor = whisper
    stimuli = StimulusSet.from_sounds([noise(8000), noise(8000, 1)], RATE)
    for place, built, whole in (("a", model, module), ("b", speech["hubert"], speech["hubert"].module)):
        whole.save_pretrained(tmp_path / place)
        (extractor if place == "a" else Wav2Vec2FeatureExtractor()).save_pretrained(tmp_path / place)
        found = extract(str(tmp_path / place), stimuli, cache=False)
        expected = extract(built, stimuli, cache=False)
        assert found.layers == expected.layers and len(found.layers) == 2
        for layer in found.layers:
            np.testing.assert_allclose(found[layer], expected[layer], atol=1e-5)
        random = extract(str(tmp_path / place), stimuli, untrained=True, seed=7, cache=False)
        assert np.abs(random[layer] - expected[layer]).max() > 1e-3


def test_sounds_of_other_models_are_refused(folder):
    from transformers import ASTConfig, ASTModel

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    with pytest.raises(ValueError, match="'audio-spectrogram-transformer'"):
        audio_model("tiny", ASTModel(ASTConfig(**small)), folder)


# ------------------------------------------------------------------------------------------------- windows


def test_windows_slide_over_sounds():
    story, short = noise(RATE), noise(1000)
    stimuli = StimulusSet.from_sounds([story, short], RATE, ids=["story", "short"])
    windows = sound_windows(stimuli, 0.25, 0.1)
    assert len(windows) == 8 and windows.ids[0] == "story@00001"
    for row in range(8):
        start = round(row * 0.1 * RATE)
        np.testing.assert_array_equal(windows.sound(row)[0], story[start : start + 4000])
    np.testing.assert_allclose(windows.table["onset"], np.arange(8) * 0.1)
    np.testing.assert_allclose(windows.table["offset"], 0.25 + np.arange(8) * 0.1)
    assert set(windows.table["sound"]) == {"story"}
    assert np.shares_memory(windows.source.read(0)[0], windows.source.read(1)[0])
    odd = sound_windows(StimulusSet.from_sounds([noise(44100)], 44100), 0.1001, 0.0333)
    assert {len(odd.sound(row)[0]) for row in range(len(odd))} == {round(0.1001 * 44100)}
    for seconds, stride in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(ValueError, match="above 0"):
            sound_windows(stimuli, seconds, stride)
    with pytest.raises(ValueError, match="none of 2 sounds"):
        sound_windows(stimuli, 2, 1)


def test_right_edge_keeps_the_last_frames(speech, whisper):
    windows = sound_windows(StimulusSet.from_sounds([noise(12000)], RATE), 0.5, 0.1)
    for model in (speech["wav2vec2"], whisper[0]):
        whole = extract(model, windows, layers="output", reduce="time:1000", cache=False)["output"]
        edge = extract(right_edge(model, 3), windows, layers="output", cache=False)["output"]
        np.testing.assert_allclose(edge, whole[:, -3:], atol=1e-5)
        mean = extract(right_edge(model, 3), windows, layers="output", reduce="mean", cache=False)["output"]
        np.testing.assert_allclose(mean, whole[:, -3:].mean(1), atol=1e-5)
    with pytest.raises(ValueError, match="frames=0"):
        right_edge(speech["hubert"], 0)
