"""Models of transformers, from folders that the tests write."""

import json

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
