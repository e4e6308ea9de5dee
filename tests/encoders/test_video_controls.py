"""Motion energy sees which way a pattern moves, how fast, and how fine it is."""

import numpy as np
import pytest
import torch

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract
from neuralign.encoders.features.adapters.video_controls import MotionEnergy, filters


def _drifting(angle, speed, cycles, fps=30.0, seconds=2.0, amplitude=0.3, size=64):
    """A grating that moves towards `angle` (degrees, counterclockwise on the screen)."""
    y, x = np.mgrid[:size, :size] / size
    turn = np.deg2rad(angle)
    along = x * np.cos(turn) - y * np.sin(turn)  # rows grow downward
    t = np.arange(int(seconds * fps)) / fps
    wave = 0.5 + amplitude * np.cos(2 * np.pi * (cycles * along - speed * t[:, None, None]))
    return np.repeat(np.uint8(np.round(255 * wave))[..., None], 3, -1)


@pytest.mark.parametrize("angle", [0, 45, 90, 135, 180, 225, 270, 315])
@pytest.mark.parametrize("speed", [2.0, 4.0])
def test_a_grating_drives_the_filter_of_its_motion(angle, speed):
    clips = StimulusSet.from_clips([_drifting(angle, speed, 4.0)], fps=30)
    energy = extract("motion-energy", clips, cache=False)["energy"].reshape(-1, 4, 4)
    centre = energy[:, 1:3, 1:3].mean((1, 2))
    best = filters()[centre.argmax()]
    assert best[0] == angle
    assert best[1] == speed
    assert best[2] == 4
    opposite = np.flatnonzero((filters() == [(angle + 180) % 360, speed, 4]).all(1))
    assert centre.max() > 5 * centre[opposite]


def test_a_still_grating_does_not_move():
    still = np.repeat(_drifting(0, 0, 8.0)[:1], 30, 0)
    energy = extract("motion-energy", StimulusSet.from_clips([still], fps=15), cache=False)["energy"].reshape(-1, 16)
    best = filters()[energy.mean(1).argmax()]
    assert best[1] == 0
    assert best[2] == 8
    fast = energy[filters()[:, 1] == 4].mean()
    assert energy.mean(1).max() > 20 * fast


def test_amplitude_is_that_of_the_pattern():
    clip = torch.from_numpy(_drifting(90, 4.0, 4.0, fps=15, seconds=4)).permute(0, 3, 1, 2)[None].float() / 255
    energy = MotionEnergy()(clip)[0].reshape(60, -1, 4, 4)
    row = np.flatnonzero((filters() == [90, 4, 4]).all(1))[0]
    assert energy[20:40, row, 1:3, 1:3].mean().item() == pytest.approx(0.3, rel=0.05)


def test_the_spectrum_filter_equals_convolution_in_time():
    rng = np.random.default_rng(0)
    clip = torch.from_numpy(rng.uniform(size=(1, 5, 3, 64, 64))).float()
    found = MotionEnergy()(clip)[0].reshape(5, 60, 16).numpy()
    grey = np.einsum("tchw,c->thw", clip[0].numpy().astype(float), [0.299, 0.587, 0.114])
    grey = np.pad(grey, ((0, 0), (16, 16), (16, 16)), mode="reflect")
    grey = np.concatenate([grey[:1]] * 8 + [grey] + [grey[-1:]] * 8)
    bank = MotionEnergy().bank.numpy()
    n = len(grey)
    frequency = np.fft.fftfreq(n, 1 / 15)
    for row in (0, 13, 25, 47):  # still, and moving both ways
        _, speed, _ = filters()[row]
        block = row // 12  # 0: still, then speed by speed forward and backward
        sign = 1 if block in (0, 1, 3) else -1
        kernel = np.fft.ifft(np.exp(-((frequency + sign * speed) ** 2) / 2))
        in_space = np.fft.ifft2(np.fft.fft2(grey) * bank[row % 12])
        for t in (0, 4):
            response = sum(kernel[(t + 8 - s) % n] * in_space[s] for s in range(n))
            places = np.abs(response)[16:-16, 16:-16].reshape(4, 16, 4, 16).mean((1, 3)).ravel()
            np.testing.assert_allclose(found[t, row], places, rtol=1e-3, atol=1e-5)


def test_frame_rates_are_brought_to_one():
    slow, fast = _drifting(0, 2.0, 4.0, fps=15), _drifting(0, 2.0, 4.0, fps=30)
    energies = [
        extract("motion-energy", StimulusSet.from_clips([clip], fps=fps), cache=False)["energy"]
        for clip, fps in ((slow, 15), (fast, 30))
    ]
    np.testing.assert_allclose(*energies, atol=2e-3)


def test_clips_of_any_length_have_features_of_one_shape_and_batches_do_not_matter():
    rng = np.random.default_rng(2)
    clips = [rng.integers(0, 256, (n, 40, 48, 3), np.uint8) for n in (15, 30, 15, 22)]
    stimuli = StimulusSet.from_clips(clips, fps=15)
    together = extract("motion-energy", stimuli, cache=False)["energy"]
    assert together.shape == (4, 960)
    alone = extract("motion-energy", stimuli, cache=False, batch_size=1)["energy"]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_an_unknown_frame_rate_is_said():
    stimuli = StimulusSet.from_clips([np.zeros((4, 32, 32, 3), np.uint8)])
    with pytest.raises(ValueError, match=r"clip-00001.*frames per second"):
        extract("motion-energy", stimuli, cache=False)


def test_other_stimuli_are_refused():
    with pytest.raises(ValueError, match="clip"):
        extract("motion-energy", StimulusSet.from_sentences(["one"]), cache=False)
