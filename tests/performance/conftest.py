"""Timing side by side: two functions in turns, so that a noisy machine is noisy for both."""

import statistics
import time

import pytest


@pytest.fixture
def versus(capsys):
    """Print the medians of two functions, called in turns, and the median of their ratios."""

    def compare(work, ours, peer, peer_name, rounds=3):
        ours(), peer()  # first calls load code and touch memory
        pairs = []
        for _ in range(rounds):
            pair = []
            for function in (ours, peer):
                start = time.perf_counter()
                function()
                pair.append(time.perf_counter() - start)
            pairs.append(pair)
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        with capsys.disabled():
            print(f"\n{work:58} neuralign {mine:8.3f} s   {peer_name} {theirs:8.3f} s   {ratio:6.1f}x", end="")

    return compare
