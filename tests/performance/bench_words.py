"""Features of words in context against one forward pass per word over everything before it (``make bench``)."""

import time

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract
from neuralign.encoders.features.language import TextInputs
from neuralign.encoders.features.registry import Model
from neuralign.encoders.features.text.words import align_words

CONTEXT = 1024
LAYERS = [f"h.{i}" for i in range(6)]


def story(n):
    """Words of one to three tokens, about 1.3 on average."""
    rng = np.random.default_rng(0)
    syllables = ["".join(rng.choice(list("bdfgklmnprst"), 1)) + v for v in "aeiou" for _ in range(12)]
    lexicon = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(800)]
    frequency = 1 / np.arange(1, 801)
    return [str(word) for word in rng.choice(lexicon, n, p=frequency / frequency.sum())]


def byte_pairs(words):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.train_from_iterator([" ".join(words)], trainers.BpeTrainer(vocab_size=250, show_progress=False))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw)


def one_by_one(module, tokens, last):
    """The last token of each word, from a pass over all tokens up to it that the model has positions for."""
    features = []
    with torch.inference_mode():
        for end in last:
            ids = torch.from_numpy(tokens[max(0, end + 1 - CONTEXT) : end + 1])[None]
            hidden = module(ids, output_hidden_states=True, use_cache=False).hidden_states
            features.append(np.stack([state[0, -1].numpy() for state in hidden[1:-1]]))
    return np.array(features)


@pytest.mark.parametrize("n", [400, 1200])
def bench_words(n, capsys):
    torch.manual_seed(0)
    sizes = {"n_embd": 256, "n_layer": 6, "n_head": 4, "vocab_size": 1000, "n_positions": CONTEXT}
    config = transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    module = transformers.GPT2Model(config).eval()
    words = story(n)
    tokenizer = byte_pairs(words)
    aligned = align_words(words, tokenizer)
    stimuli = StimulusSet.from_words(words, np.arange(n))
    model = Model("gpt2", module, TextInputs(tokenizer, CONTEXT, causal=True))
    extract(model, stimuli, LAYERS, cache=False)  # loads code
    sample = np.arange(0, n, n // 20)  # twenty words stand for all
    one_by_one(module, aligned.token_ids, aligned.last[:3])
    ours, theirs = [], []
    for _ in range(3):
        start = time.perf_counter()
        features = extract(model, stimuli, LAYERS, cache=False)
        middle = time.perf_counter()
        slow = one_by_one(module, aligned.token_ids, aligned.last[sample])
        ours.append(middle - start)
        theirs.append((time.perf_counter() - middle) * n / len(sample))
    same = aligned.last[sample] < CONTEXT  # later on, the windows that are shared have a shorter context
    found = np.stack([features[layer][sample] for layer in LAYERS[:-1]], axis=1)
    difference = np.abs(found - slow)[same].max()
    assert difference < 1e-4
    with capsys.disabled():
        print(
            f"\n{f'{n} words ({len(aligned.token_ids)} tokens), GPT-2 6 x 256, {torch.get_num_threads()} threads':58} "
            f"neuralign {min(ours):8.3f} s   a pass per word {min(theirs):8.3f} s   {min(theirs) / min(ours):6.1f}x   "
            f"largest difference {difference:.0e}",
            end="",
        )
