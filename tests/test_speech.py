"""Speech features computed as a stream equal those of the whole recording."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lipstream.errors import ModelError
from lipstream.models.whisper import AudioEncoder, AudioEncoderConfig
from lipstream.speech import mel
from lipstream.speech.features import feature_rows, frame_windows


def noise(n_samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, n_samples).astype(np.float32)


def pieces(samples: NDArray[np.float32], size: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def whole_log_mel(samples: NDArray[np.float32], n_mels: int) -> torch.Tensor:
    """Whisper's definition on the whole recording: torch's centred STFT, its last column dropped."""
    spectrum = torch.stft(
        torch.from_numpy(samples), 400, 160, window=torch.hann_window(400), center=True, return_complex=True
    )
    energy = mel.mel_filters(n_mels) @ spectrum[:, :-1].abs().square()
    return energy.clamp_min(1e-10).log10()


@pytest.mark.parametrize("n_samples", [640, 16000, 16001, 31999, 32000, 32100, 32399, 32400, 32401, 40000])
@pytest.mark.parametrize("piece", [1000, 7919, 100000])
def test_blocks_are_those_of_the_whole_recording(n_samples: int, piece: int) -> None:
    samples = noise(n_samples)
    blocks = list(mel.log_mel_blocks(pieces(samples, piece), 80, block_frames=100))
    assert all(block.shape[1] == 100 for block in blocks[:-1])
    assert torch.allclose(torch.cat(blocks, 1), whole_log_mel(samples, 80), atol=1e-4)


@pytest.mark.parametrize("n_samples", [0, 1, 159])
def test_too_short_for_one_column_gives_nothing(n_samples: int) -> None:
    assert not [block for block in mel.log_mel_blocks([noise(n_samples)], 80) if block.shape[1]]


def test_filters_are_slaney_triangles_of_equal_area() -> None:
    filters = mel.mel_filters(80)
    assert filters.shape == (80, 201)
    assert (filters >= 0).all()
    # Above the bins' own width the area of each triangle, in Hz, is one.
    assert torch.allclose(filters[40:].sum(1) * 40.0, torch.ones(40), atol=0.1)
    assert (filters.argmax(1).diff() >= 0).all()


def small_encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(
        AudioEncoderConfig(n_mels=80, n_audio_ctx=50, n_audio_state=16, n_audio_head=2, n_audio_layer=1)
    ).eval()


@pytest.mark.parametrize("sizes", [[4, 3], [3, 0]])
def test_kernels_that_have_no_middle_are_refused(sizes: list[int]) -> None:
    words = {"n_mels": 80, "n_audio_ctx": 50, "n_audio_state": 16, "n_audio_head": 2, "n_audio_layer": 1}
    with pytest.raises(ModelError, match="kernel_sizes"):
        AudioEncoderConfig.from_dict({**words, "kernel_sizes": sizes})


@pytest.mark.parametrize("piece", [500, 16000])
def test_rows_do_not_depend_on_how_the_samples_come(piece: int) -> None:
    samples, encoder = noise(40000), small_encoder()
    whole = torch.cat(list(feature_rows(lambda: [samples], encoder)))
    cut = torch.cat(list(feature_rows(lambda: pieces(samples, piece), encoder)))
    assert whole.shape == (125, 2, 16)
    assert torch.allclose(whole, cut, atol=1e-5)


def test_each_frame_hears_the_ten_rows_around_it() -> None:
    rows = torch.arange(23.0)[:, None, None].expand(23, 2, 3)
    windows = list(frame_windows(iter(rows.split(7)), 14))
    assert len(windows) == 14
    for i, window in enumerate(windows):
        expected = torch.arange(2 * i - 4, 2 * i + 6).clamp(0, 22).float()
        assert window.shape == (20, 3)
        assert torch.equal(window[::2, 0], expected), i


def test_a_recording_without_rows_has_no_windows() -> None:
    assert list(frame_windows([], 3)) == []
