"""Reading speech: its samples at any rate and number of channels, invalid ones, and readers that share a file."""

from __future__ import annotations

import itertools
import logging
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from helpers.media import (
    n_open,
    write_float_wav,
    write_numbered,
    write_wav,
)
from lipstream.errors import InputError
from lipstream.media.audio import SharedSpeech, n_output_frames, probe_speech, read_mono, read_planar


def test_16_khz_mono_is_handed_through_exactly(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 40_001).astype(np.int16)
    path = write_wav(tmp_path / "speech.wav", samples, 16000)
    read = np.concatenate(list(read_mono(path)))
    assert read.dtype == np.float32 and np.array_equal(read, samples / np.float32(32768))
    assert probe_speech(path).duration_s == Fraction(40_001, 16000)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8000, 22050, 44100, 48000])
def test_speech_at_any_rate_becomes_16_khz_mono(rate_hz: int, channels: int, tmp_path: Path) -> None:
    n = rate_hz * 6 // 5 + 7
    tone = np.sin(np.arange(n) / rate_hz * 2 * np.pi * 440) * 9000
    # The second channel is silent: the mean halves the tone.
    samples = np.stack([tone, 0 * tone], 1)[:, :channels].astype(np.int16)
    path = write_wav(tmp_path / "speech.wav", samples, rate_hz)
    info = probe_speech(path)
    assert (info.sample_rate_hz, info.channels, info.n_samples) == (rate_hz, channels, n)
    mono = np.concatenate(list(read_mono(path)))
    assert len(mono) == round(Fraction(n * 16000, rate_hz))
    expected = np.sin(np.arange(len(mono)) / 16000 * 2 * np.pi * 440) * 9000 / 32768 / channels
    assert np.abs(mono - expected)[200:-200].max() < 0.002
    planar = np.concatenate(list(read_planar(info)), 1)
    assert np.array_equal(planar, samples.T / np.float32(32768))


def test_n_output_frames_rounds_exactly(tmp_path: Path) -> None:
    def frames(n_samples: int, rate_hz: int) -> int:
        path = write_wav(tmp_path / "speech.wav", np.zeros(n_samples, np.int16), rate_hz)
        return n_output_frames(probe_speech(path))

    assert frames(16000, 16000) == 25
    assert frames(16000 + 319, 16000) == 25
    assert frames(16000 + 321, 16000) == 26
    assert frames(44100 * 2 + 883, 44100) == 51
    assert frames(1, 48000) == 1


@pytest.mark.parametrize("rate_hz", [16000, 44100])
def test_mono_is_clipped_to_full_scale(rate_hz: int, tmp_path: Path) -> None:
    samples = 3 * np.sin(np.arange(rate_hz) / 40).astype(np.float32)
    path = write_float_wav(tmp_path / "loud.wav", samples, rate_hz)
    mono = np.concatenate(list(read_mono(path)))
    assert mono.max() == 1 and mono.min() == -1
    info = probe_speech(path)
    assert info.peak == np.abs(samples).max()
    assert np.array_equal(np.concatenate(list(read_planar(info)), 1)[0], samples)


INVALID = [np.nan, np.inf, -np.inf, 3e38, -2e6]


@pytest.mark.parametrize(("rate_hz", "dtype"), [(16000, np.float32), (44100, np.float32), (16000, np.float64)])
def test_invalid_samples_are_silence_with_one_warning(
    rate_hz: int, dtype: type[np.floating], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clean = (0.3 * np.sin(np.arange(2 * rate_hz) / 40)).astype(dtype)
    places = np.arange(1000, 1000 + 500 * len(INVALID), 500)
    damaged = clean.copy()
    damaged[places] = INVALID if dtype == np.float32 else [*INVALID[:3], 1e300, INVALID[4]]
    clean[places] = 0
    clean_path = write_float_wav(tmp_path / "clean.wav", clean, rate_hz)
    damaged_path = write_float_wav(tmp_path / "damaged.wav", damaged, rate_hz)
    with caplog.at_level(logging.WARNING, "lipstream"):
        info = probe_speech(damaged_path)
        mono = np.concatenate(list(read_mono(damaged_path)))
        planar = np.concatenate(list(read_planar(info)), 1)
    assert [record.message for record in caplog.records] == [
        f"{damaged_path}: 5 samples are not finite numbers or far too loud; they are replaced by silence"
    ]
    assert np.array_equal(mono, np.concatenate(list(read_mono(clean_path))))
    assert np.array_equal(planar[0], clean.astype(np.float32))


def test_a_silent_recording_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    faint = write_wav(tmp_path / "faint.wav", np.array([0, 2, -3] * 9999, np.int16), 16000)
    quiet = write_wav(tmp_path / "quiet.wav", np.array([0, 0, -40] * 9999, np.int16), 16000)
    with caplog.at_level(logging.WARNING, "lipstream"):
        assert probe_speech(quiet).peak == 40 / 32768
        assert not caplog.records
        assert len(list(read_mono(faint))) > 0 and probe_speech(faint).peak == 3 / 32768
    assert len(caplog.records) == 1 and "silent" in caplog.text and str(faint) in caplog.text


@pytest.mark.parametrize(("rate_hz", "channels"), [(16000, 1), (44100, 2)])
def test_shared_speech_gives_both_readers_what_each_would_read_alone(
    rate_hz: int, channels: int, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(-9999, 9999, (3 * rate_hz, channels)).astype(np.int16)
    info = probe_speech(write_wav(tmp_path / "speech.wav", noise, rate_hz))
    mono, planar = np.concatenate(list(read_mono(info.path))), np.concatenate(list(read_planar(info)), 1)
    with SharedSpeech(info) as shared:
        assert np.array_equal(np.concatenate(list(shared.mono())), mono)
        assert np.array_equal(np.concatenate(list(shared.planar()), 1), planar)
    with SharedSpeech(info) as shared, ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(lambda blocks: list(blocks), blocks) for blocks in (shared.mono(), shared.planar())]
        assert np.array_equal(np.concatenate(readers[0].result(10)), mono)
        assert np.array_equal(np.concatenate(readers[1].result(10), 1), planar)


def test_shared_speech_holds_the_distance_between_its_readers(tmp_path: Path) -> None:
    info = probe_speech(write_wav(tmp_path / "speech.wav", np.ones(60 * 48000, np.int16), 48000))

    def peak_bytes(distance: int) -> int:
        with SharedSpeech(info) as shared:
            model, output = shared.mono(), shared.planar()
            for _ in itertools.islice(model, distance):
                pass
            tracemalloc.start()
            for _ in zip(model, output, strict=False):
                pass
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return peak

    all_bytes = 4 * info.n_samples
    assert peak_bytes(3) < all_bytes / 20
    with SharedSpeech(info) as shared:
        output = shared.planar()
        next(output)
        output.close()
        tracemalloc.start()
        assert sum(len(block) for block in shared.mono()) == 60 * 16000
        assert tracemalloc.get_traced_memory()[1] < all_bytes / 20  # nothing is kept for a reader that has closed
        tracemalloc.stop()


def test_closing_shared_speech_ends_its_readers_and_closes_the_file(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "speech.wav", np.ones(10 * 48000, np.int16), 48000)
    with SharedSpeech(probe_speech(path)) as shared:
        model, output = shared.mono(), shared.planar()
        next(model)
        next(output)
        assert n_open(path) == 1
    assert n_open(path) == 0
    assert len(list(output)) == 0
    assert sum(len(block) for block in model) < 16000


def test_a_recording_without_samples_is_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "speech.wav", np.zeros(0, np.int16), 16000)
    with pytest.raises(InputError, match="zero samples"):
        probe_speech(path)
    with pytest.raises(InputError, match="zero samples"):
        next(read_mono(path))


def test_the_sound_track_of_a_video_is_speech(tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "clip.mp4", [*range(25)], Fraction(1, 25), with_sound=True)
    info = probe_speech(clip)
    assert (info.sample_rate_hz, info.channels, info.layout) == (16000, 1, "mono")
    assert n_output_frames(info) in (25, 26, 27)  # AAC comes in whole blocks
