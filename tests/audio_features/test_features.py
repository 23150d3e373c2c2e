"""Speech features computed as a stream equal those of the whole recording."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from av.container import InputContainer
from numpy.typing import NDArray

from helpers.media import write_wav
from lipstream.audio_features import mel
from lipstream.audio_features.features import feature_rows, frame_windows
from lipstream.audio_features.mel import log_mel_maximum
from lipstream.errors import ModelError
from lipstream.media import sound
from lipstream.media.audio import SharedSpeech, n_output_frames, probe_speech, read_mono
from lipstream.media.writer import VideoWriter
from lipstream.models.whisper import AudioEncoder, AudioEncoderConfig


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
    fields = {"n_mels": 80, "n_audio_ctx": 50, "n_audio_state": 16, "n_audio_head": 2, "n_audio_layer": 1}
    with pytest.raises(ModelError, match="kernel_sizes"):
        AudioEncoderConfig.from_dict({**fields, "kernel_sizes": sizes})


@pytest.mark.parametrize("piece", [500, 16000])
def test_rows_do_not_depend_on_how_the_samples_come(piece: int) -> None:
    samples, encoder = noise(40000), small_encoder()
    whole = torch.cat(list(feature_rows(lambda: [samples], encoder)))
    cut = torch.cat(list(feature_rows(lambda: pieces(samples, piece), encoder)))
    assert whole.shape == (125, 2, 16)
    assert torch.allclose(whole, cut, atol=1e-5)


def published_log_mel(samples: NDArray[np.float64], n_mels: int = 80) -> NDArray[np.float64]:
    """Whisper's input by its published formula, on the whole recording in numpy's double precision: (n_mels, n)."""
    padded = np.pad(samples, 200, mode="reflect")
    starts = np.arange(len(samples) // 160) * 160
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(padded[starts[:, None] + np.arange(400)] * window)) ** 2

    def to_mel(hz: float) -> float:
        return hz / (200 / 3) if hz < 1000 else 15 + np.log(hz / 1000) * 27 / np.log(6.4)

    def to_hz(mel_value: float) -> float:
        return mel_value * 200 / 3 if mel_value < 15 else 1000 * 6.4 ** ((mel_value - 15) / 27)

    edges_hz = [to_hz(value) for value in np.linspace(0, to_mel(8000), n_mels + 2)]
    bins_hz = np.arange(201) * 40
    filters = np.stack(
        [np.interp(bins_hz, edges_hz[i : i + 3], [0, 2 / (edges_hz[i + 2] - edges_hz[i]), 0]) for i in range(n_mels)]
    )
    log_mel = np.log10(np.maximum(filters @ power.T, 1e-10))
    return (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4


def speech_with_pauses() -> NDArray[np.int16]:
    """5.3 s at 16 kHz: loud, digital silence, faint noise around the floor, loud again."""
    rng = np.random.default_rng(0)
    time_s = np.arange(84_813) / 16000
    voice = np.sin(2 * np.pi * 220 * time_s) + 0.5 * np.sin(2 * np.pi * 1740 * time_s)
    loudness = np.interp(time_s, [0, 1, 1.05, 2.2, 2.25, 3.5, 3.55, 6], [1, 1, 0, 0, 0, 0, 1, 1])
    faint = rng.standard_normal(len(time_s)) * ((time_s > 2.2) & (time_s < 3.5))
    return np.round(20000 * voice / 1.5 * loudness + faint).astype(np.int16)


@pytest.mark.parametrize("is_probed", [True, False])
def test_pauses_come_down_to_whisper_s_floor_and_no_lower(is_probed: bool, tmp_path: Path) -> None:
    samples = speech_with_pauses()
    path = write_wav(tmp_path / "speech.wav", samples, 16000)
    expected = published_log_mel(samples / 32768)
    at_floor = expected == expected.min()
    assert expected.max() - expected.min() == pytest.approx(2)  # 8 decades
    assert 0.1 < at_floor.mean() < 0.9 and (expected[~at_floor] < expected.min() + 0.1).any()

    encoder, blocks = small_encoder(), []
    encoder.register_forward_pre_hook(lambda _, args: blocks.append(args[0][0]))
    maximum = probe_speech(path, log_mel_maximum).log_mel_max if is_probed else None
    assert len(list(feature_rows(lambda: read_mono(path), encoder, maximum=maximum))) == len(blocks) == 6
    model_input = torch.cat(blocks, 1)[:, : expected.shape[1]].double().numpy()
    np.testing.assert_allclose(model_input, expected, atol=2e-4)


def test_a_run_decodes_the_speech_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "speech.wav", speech_with_pauses(), 16000)
    opened: list[Path] = []
    open_input = sound.open_input

    def counted(name: Path, noun: str) -> InputContainer:
        opened.append(name)
        return open_input(name, noun)

    monkeypatch.setattr(sound, "open_input", counted)
    info = probe_speech(path, log_mel_maximum)
    with (
        SharedSpeech(info) as shared,
        VideoWriter(
            tmp_path / "out.mp4",
            width=64,
            height=64,
            color=None,
            speech=info,
            speech_samples=shared.planar(),
            n_frames=n_output_frames(info),
        ) as writer,
    ):
        rows = feature_rows(shared.mono, small_encoder(), maximum=info.log_mel_max)
        features = list(frame_windows(rows, n_output_frames(info)))
        for _ in features:
            writer.write(np.zeros((64, 64, 3), np.uint8))
    assert opened == [path, path]

    read_again = feature_rows(lambda: read_mono(path), small_encoder())
    assert torch.equal(torch.stack(features), torch.stack(list(frame_windows(read_again, len(features)))))
    with VideoWriter(
        tmp_path / "again.mp4", width=64, height=64, color=None, speech=info, n_frames=len(features)
    ) as writer:
        for _ in features:
            writer.write(np.zeros((64, 64, 3), np.uint8))
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()


def test_each_frame_takes_the_ten_rows_around_it() -> None:
    rows = torch.arange(23.0)[:, None, None].expand(23, 2, 3)
    windows = list(frame_windows(iter(rows.split(7)), 14))
    assert len(windows) == 14
    for i, window in enumerate(windows):
        expected = torch.arange(2 * i - 4, 2 * i + 6).clamp(0, 22).float()
        assert window.shape == (20, 3)
        assert torch.equal(window[::2, 0], expected), i


def test_a_recording_without_rows_has_no_windows() -> None:
    assert list(frame_windows([], 3)) == []


def test_blocks_that_overlap_have_no_seam() -> None:
    """Rows of one convolution are those of the recording in one piece, but for the recording's ends."""
    config = AudioEncoderConfig(n_audio_ctx=100, n_audio_state=8, n_audio_head=2, n_audio_layer=0, position_period=20)
    encoder, whole = AudioEncoder(config), AudioEncoder(replace(config, n_audio_ctx=400))
    whole.load_state_dict({**encoder.state_dict(), "positional_embedding": whole.positional_embedding})
    samples = np.random.default_rng(0).normal(0, 0.1, 16000 * 7).astype(np.float32)
    expected = torch.cat(list(feature_rows(lambda: [samples], whole)))
    apart, shared = (torch.cat(list(feature_rows(lambda: [samples], encoder, overlap_s=s))) for s in (0.0, 0.4))
    assert len(apart) == len(shared) == len(expected) == 350
    torch.testing.assert_close(shared, expected, atol=1e-5, rtol=1e-5)
    assert (apart - expected).abs().amax((1, 2)).gt(1e-3).sum() > 0
