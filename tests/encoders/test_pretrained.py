"""Models of transformers, from folders that the tests write."""

import json
import shutil

import numpy as np
import pytest
import torch

from neuralign.datasets import StimulusSet
from neuralign.encoders import ImageInputs, extract, load_model

transformers = pytest.importorskip("transformers")

SENTENCES = ["the cat sat", "a dog ran over the mat", "the mat", "a cat ran", "the dog sat on a mat today"]


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(folder)
    settings = {
        "size": {"height": 32, "width": 32},
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.2, 0.2],
        "resample": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("gpt2")
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(7)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=len(words) + 1, n_positions=32)
    transformers.GPT2Model(config).save_pretrained(folder)
    return folder


def test_vision_layers_equal_hidden_states(vision_folder):
    stimuli = StimulusSet.from_images(np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8))
    features = extract(str(vision_folder), stimuli, cache=False)
    model = load_model(str(vision_folder))
    read = ImageInputs((32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), resample="bilinear")
    x = torch.stack([read.read(stimuli.image(i)) for i in range(4)])
    with torch.no_grad():
        hidden = model.module(x, output_hidden_states=True).hidden_states
    assert len(features.layers) == 3
    for layer, state in zip(features, hidden[1:], strict=True):
        assert features[layer].shape == (4, 17, 16)
        np.testing.assert_allclose(features[layer], state, atol=1e-5)
    first = extract(str(vision_folder), stimuli, features.layers[:1], reduce="cls", cache=False)
    np.testing.assert_allclose(first[features.layers[0]], hidden[1][:, 0], atol=1e-5)


def by_hand(image, size, shortest=None, method=2, factor=1 / 255, mean=0.5, std=0.5):
    """Preprocessing in PIL and numpy."""
    if shortest:
        width, height = image.size
        if width < height:
            image = image.resize((shortest, int(shortest * height / width)), method)
        else:
            image = image.resize((int(shortest * width / height), shortest), method)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    elif size:
        image = image.resize((size, size), method)
    return ((np.asarray(image, float) * factor - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("settings", "truth"),
    [
        ({}, {"size": 224}),  # the class's own default: bilinear, mean 0.5
        ({"size": {"height": 32, "width": 32}, "rescale_factor": 0.5}, {"size": 32, "factor": 0.5}),
        ({"size": {"height": 32, "width": 32}, "do_rescale": False}, {"size": 32, "factor": 1}),
        ({"do_resize": False}, {"size": None}),
        ({"size": {"height": 32, "width": 32}, "resample": 3, "do_normalize": False},
         {"size": 32, "method": 3, "mean": 0, "std": 1}),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32,
          "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"size": 32, "shortest": 36, "method": 3}),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"height": 32, "width": 32}, "do_center_crop": False,
          "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"size": 32, "method": 3}),
    ],
)  # fmt: skip
def test_every_setting_of_the_preprocessing_is_honoured(vision_folder, tmp_path, settings, truth):
    folder = shutil.copytree(vision_folder, tmp_path / "copy")
    settings = {"image_processor_type": "ViTImageProcessor"} | settings
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    stimuli = StimulusSet.from_images(np.random.default_rng(0).integers(0, 256, (3, 40, 52, 3), np.uint8))
    model = load_model(str(folder))
    [(rows, batch)] = list(model.inputs.batches(stimuli, 3))
    for row in rows:
        expected = by_hand(stimuli.image(row), **truth)
        np.testing.assert_allclose(batch["pixel_values"][row], expected, atol=1e-4 * max(1, np.abs(expected).max()))


PROCESSORS = [
    ("ViTImageProcessor", {}),
    ("ViTImageProcessor", {"rescale_factor": 0.01, "image_std": [0.1, 0.2, 0.3]}),
    ("ViTImageProcessor", {"do_rescale": False}),
    ("ViTImageProcessor", {"do_normalize": False}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": 32}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 20}, "crop_size": 32}),  # the crop fills up with zeros
    ("SiglipImageProcessor", {"size": {"height": 24, "width": 32}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    ("BitImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": 32}),
]


@pytest.mark.parametrize(("name", "settings"), PROCESSORS)
def test_decoding_and_finishing_equal_the_processor(vision_folder, tmp_path, name, settings):
    """What workers and the device do apart is what the processor of transformers does at once."""
    folder = shutil.copytree(vision_folder, tmp_path / "copy")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name} | settings))
    inputs = load_model(str(folder)).inputs
    stimuli = StimulusSet.from_images(np.random.default_rng(0).integers(0, 256, (3, 41, 52, 3), np.uint8))
    pixels = inputs.decode(stimuli, [2, 0])
    assert all(one.dtype == np.uint8 and one.ndim == 3 and one.shape[2] == 3 for one in pixels)
    stack = torch.from_numpy(np.stack(pixels))
    before = stack.clone()
    whole = inputs.finish({"anything": stack}, torch.device("cpu"))["pixel_values"]
    assert whole.dtype == torch.float32 and whole.is_contiguous() and torch.equal(stack, before)
    for one, row in zip(whole, [2, 0], strict=True):
        truth = inputs.processor(images=[stimuli.image(row)], return_tensors="pt")["pixel_values"][0].float()
        torch.testing.assert_close(one, truth, rtol=1e-6, atol=1e-6 * float(truth.abs().max()))
    last = inputs.finish({"x": stack}, torch.device("cpu"), torch.channels_last)["pixel_values"]
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, whole)
    [(rows, batch)] = list(inputs.batches(stimuli[[2, 0]], 8))
    assert rows == [0, 1] and torch.equal(batch["pixel_values"], whole)


def test_a_processor_that_is_not_plain_arithmetic_runs_as_it_is(vision_folder, tmp_path):
    folder = shutil.copytree(vision_folder, tmp_path / "copy")
    settings = {"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True}
    settings |= {"size": {"height": 32, "width": 32}, "include_top": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    inputs = load_model(str(folder)).inputs
    stimuli = StimulusSet.from_images(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8))
    [(_, batch)] = list(inputs.batches(stimuli, 2))
    for row in range(2):
        truth = inputs.processor(images=[stimuli.image(row)], return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(batch["pixel_values"][row], truth)
    assert not hasattr(inputs, "decode")  # include_top divides by the deviation once more


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("shortest", [None, 24])
def test_image_inputs_apart_and_at_once(size, shortest):
    read = ImageInputs(size, shortest, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")
    stimuli = StimulusSet.from_images(np.random.default_rng(0).integers(0, 256, (3, 41, 52, 3), np.uint8))
    stack = torch.from_numpy(np.stack(read.decode(stimuli, [1, 2])))
    assert stack.dtype == torch.uint8 and tuple(stack.shape) == (2, *size, 3)
    for layout in (torch.contiguous_format, torch.channels_last):
        whole = read.finish({"x": stack}, torch.device("cpu"), layout)["x"]
        assert whole.is_contiguous(memory_format=layout)
        for one, row in zip(whole, [1, 2], strict=True):
            image = stimuli.image(row)
            if shortest:
                image = image.resize((round(52 * 24 / 41), 24), 2)
                left, top = (image.width - size[1]) // 2, (image.height - size[0]) // 2
                image = image.crop((left, top, left + size[1], top + size[0]))
            else:
                image = image.resize(size[::-1], 2)
            truth = (np.asarray(image) / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.3, 0.4)
            np.testing.assert_allclose(one, truth.transpose(2, 0, 1), atol=2e-6)
            assert torch.equal(one, read.read(stimuli.image(row)))


def test_images_of_ones_own_reader_that_differ_in_size_are_named():
    stimuli = StimulusSet.from_images([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])

    def read(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    with pytest.raises(ValueError, match="'image-00001' and 'image-00002' differ in size"):
        extract(torch.nn.ReLU(), stimuli, "output", preprocess=read, cache=False)


def test_key_of_the_preprocessing(vision_folder, tmp_path):
    stimuli = StimulusSet.from_images(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8))

    def key(folder):
        return next(iter(extract(str(folder), stimuli, cache=tmp_path / "store").keys_.values()))

    folder = shutil.copytree(vision_folder, tmp_path / "copy")
    assert key(folder) == key(vision_folder)  # found by content and not by a name
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"rescale_factor": 0.004}))
    assert key(folder) != key(vision_folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"cannot build its image processor.*save_pretrained"):
        load_model(str(folder))


def test_images_that_stay_of_different_size_are_named(vision_folder, tmp_path):
    folder = shutil.copytree(vision_folder, tmp_path / "copy")
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_resize": False}))
    stimuli = StimulusSet.from_images([np.zeros((32, 32, 3), np.uint8), np.zeros((40, 32, 3), np.uint8)])
    with pytest.raises(ValueError, match="'image-00001' and 'image-00002' differ in size"):
        extract(str(folder), stimuli, cache=False)


def test_a_sentence_beyond_the_positions_is_named(text_folder):
    stimuli = StimulusSet.from_sentences(["the cat", "the cat sat " * 11])
    with pytest.raises(ValueError, match=r"1 sentences have more tokens than the 32 .*'sentence-00002', 33 tokens"):
        extract(str(text_folder), stimuli, cache=False)


def test_arguments_that_transformers_does_not_read(text_folder, tmp_path):
    with pytest.raises(ValueError, match="weights= is not read by a model of transformers"):
        load_model(str(text_folder), weights=tmp_path)


def test_sentences_of_every_length_equal_one_by_one(text_folder):
    stimuli = StimulusSet.from_sentences(SENTENCES)
    features = extract(str(text_folder), stimuli, cache=False, batch_size=2)
    model = load_model(str(text_folder))
    for row, sentence in enumerate(SENTENCES):
        ids = torch.tensor([model.inputs.tokenizer(sentence)["input_ids"]])
        with torch.no_grad():
            hidden = model.module(ids, output_hidden_states=True).hidden_states
        np.testing.assert_allclose(features["h.0"][row], hidden[1][0].mean(0), atol=1e-5)


def test_untrained_copy_differs_and_follows_the_seed(text_folder):
    stimuli = StimulusSet.from_sentences(SENTENCES)
    trained = extract(str(text_folder), stimuli, "h.1", cache=False)["h.1"]
    first, same, other = (
        extract(f"{text_folder}-untrained", stimuli, "h.1", cache=False, seed=s)["h.1"] for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0.01 and np.abs(first - trained).max() > 0.01


def test_empty_sentence_and_wrong_folder(text_folder, tmp_path):
    with pytest.raises(ValueError, match=r"1 sentences are empty \(first: 'sentence-00002'\)"):
        extract(str(text_folder), StimulusSet.from_sentences(["the cat", " "]), cache=False)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded by transformers"):
        load_model(str(tmp_path))
