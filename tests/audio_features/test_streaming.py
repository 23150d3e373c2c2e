"""Audio features of speech that is still being spoken, beside those of the whole recording."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.audio_features.features import Encoder, feature_rows, frame_windows
from lipstream.audio_features.mel import SAMPLE_RATE_HZ, log_mel_blocks, log_mel_maximum
from lipstream.audio_features.streaming import SpokenFeatures, SpokenMel
from lipstream.models.load import load_model
from lipstream.models.whisper import AudioEncoder, AudioEncoderConfig

LOOK_AHEAD_S = 0.27


def speech(seconds: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    n = round(seconds * SAMPLE_RATE_HZ)
    loudness = np.repeat(rng.uniform(0.001, 0.3, n // 1600 + 1), 1600)[:n]
    return np.asarray(rng.normal(0, 1, n) * loudness, np.float32).clip(-1, 1)


@pytest.fixture(scope="module")
def convolutions() -> Encoder:
    """The bundled model's encoder, which has no attention."""
    encoder = load_model("tiny", torch.device("cpu"), torch.float32).audio_encoder
    assert isinstance(encoder, AudioEncoder)
    assert encoder.config.n_audio_layer == 0
    return encoder


@pytest.fixture(scope="module")
def attention() -> Encoder:
    torch.manual_seed(0)
    config = AudioEncoderConfig(n_audio_ctx=50, n_audio_state=8, n_audio_head=2, n_audio_layer=1)
    return AudioEncoder(config).eval().requires_grad_(False)


def pieces(samples: NDArray[np.float32], size: int) -> Iterator[Tensor]:
    for start in range(0, len(samples), size):
        yield torch.from_numpy(samples[start : start + size])


def offline(
    samples: NDArray[np.float32], encoder: Encoder, rate: Fraction, overlap_s: float, n_frames: int
) -> list[Tensor]:
    rows = feature_rows(lambda: [samples], encoder, None, log_mel_maximum([samples]), 0, overlap_s)
    return list(frame_windows(rows, n_frames, frame_rate=rate))


def assert_equal_but_for_rounding(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Convolutions over other lengths add in another order, which is off by a share of the largest features."""
    torch.testing.assert_close(ours, theirs, atol=2e-6 * float(theirs.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("size", [1, 159, 1600, 100_000])
@pytest.mark.parametrize("n_samples", [100, 201, 399, 560, 9_000])
def test_columns_are_those_of_the_whole_recording(n_samples: int, size: int) -> None:
    samples = speech(1)[:n_samples]
    spoken = SpokenMel(80)
    for piece in pieces(samples, size):
        spoken.add(piece)
    spoken.end()
    (expected,) = [*log_mel_blocks([samples], 80)] or [torch.zeros(80, 0)]
    assert spoken.stop == expected.shape[1]
    torch.testing.assert_close(spoken.part(0, spoken.stop), expected)
    assert spoken.maximum == pytest.approx(float(expected.max())) if expected.shape[1] else spoken.maximum < -99


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001)])
@pytest.mark.parametrize("overlap_s", [0.0, 1.0])
def test_with_enough_look_ahead_features_are_those_of_the_whole_recording(
    convolutions: Encoder, rate: Fraction, overlap_s: float
) -> None:
    samples = speech(62)
    n_frames = round(len(samples) * rate / SAMPLE_RATE_HZ)
    expected = offline(samples, convolutions, rate, overlap_s, n_frames)
    maximum = log_mel_maximum([samples])
    features, spoken = SpokenFeatures(convolutions, None, rate, overlap_s), SpokenMel(80)
    done = 0
    for index, piece in enumerate(pieces(samples, 3_200), 1):
        spoken.add(piece)
        n = int((index * 3_200 / SAMPLE_RATE_HZ - LOOK_AHEAD_S) * rate) - done
        if n >= 4:
            spoken.forget(features.first_column(done))
            for ours, theirs in zip(features.windows(spoken, done, n, maximum), expected[done:], strict=False):
                assert_equal_but_for_rounding(ours, theirs)
            done += n
    spoken.end()
    rest = features.windows(spoken, done, n_frames - done, maximum)
    assert len(rest) == n_frames - done
    for ours, theirs in zip(rest, expected[done:], strict=True):
        assert_equal_but_for_rounding(ours, theirs)
    assert spoken.part(spoken.first, spoken.stop).shape[1] < 3_300  # what is past is forgotten


@pytest.mark.parametrize("overlap_s", [0.0, 0.2])
@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.7])
def test_of_a_recording_that_has_ended_they_are_the_same_with_attention(
    attention: Encoder, overlap_s: float, seconds: float
) -> None:
    samples = speech(seconds)
    n_frames = round(seconds * 25)
    expected = offline(samples, attention, Fraction(25), overlap_s, n_frames)
    features, spoken = SpokenFeatures(attention, None, Fraction(25), overlap_s), SpokenMel(80)
    for piece in pieces(samples, 1_000):
        spoken.add(piece)
    spoken.end()
    maximum = spoken.maximum
    ours = [one for n in range(n_frames) for one in features.windows(spoken, n, 1, maximum)]
    assert len(ours) == len(expected)
    torch.testing.assert_close(torch.stack(ours), torch.stack(expected), atol=2e-5, rtol=1e-4)


def test_what_is_not_finite_is_computed_again(convolutions: Encoder) -> None:
    class Broken(AudioEncoder):
        def convolve(self, mel: Tensor) -> Tensor:
            return super().convolve(mel) * float("nan")

    broken = Broken(convolutions.config)
    spoken = SpokenMel(80)
    spoken.add(torch.from_numpy(speech(1)))
    features = SpokenFeatures(broken, lambda first, last: iter([broken, convolutions]), Fraction(25))
    assert torch.isfinite(torch.stack(features.windows(spoken, 0, 8, spoken.maximum))).all()
