"""Speech with gaps, late starts, several tracks and channels that cancel each other out."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.media import write_float_wav, write_numbered, write_wav
from lipstream.audio_features.mel import log_mel_maximum
from lipstream.errors import InputError
from lipstream.media.audio import SharedSpeech, probe_speech, read_mono, read_planar
from lipstream.media.memory import speech_from

RATE_HZ = 48000


def tone(duration_s: float, hz: float = 440) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def write_sound(
    path: Path, pieces: list[tuple[float, NDArray[np.float32]]], codec: str = "libopus", with_picture: bool = False
) -> Path:
    """A recording of pieces that begin at the given times."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libvpx", rate=25) if with_picture else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        stream = container.add_stream(codec, rate=RATE_HZ, layout="mono")
        if picture is not None:
            for _ in range(50):
                container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
            container.mux(picture.encode(None))
        for start_s, samples in pieces:
            for begin in range(0, len(samples), 960):
                block = np.zeros(960, np.float32)
                block[: len(samples) - begin] = samples[begin : begin + 960]
                frame = av.AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
                frame.sample_rate, frame.time_base = RATE_HZ, Fraction(1, RATE_HZ)
                frame.pts = round(start_s * RATE_HZ) + begin
                for packet in stream.encode(frame):
                    container.mux(packet)
        container.mux(stream.encode(None))
    return path


def onsets_s(samples: NDArray[np.float32], rate_hz: int) -> list[float]:
    """When sound begins after at least 0.1 s of silence."""
    loud = np.flatnonzero(np.abs(samples) > 0.2)
    starts = [loud[0], *loud[1:][np.diff(loud) > 0.1 * rate_hz]]
    return [float(start / rate_hz) for start in starts]


def test_gaps_by_time_stamps_are_silence(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "gaps.webm", [(0, tone(0.5)), (1.2, tone(0.3)), (1.9, tone(0.1))])
    info = probe_speech(path, log_mel_maximum)
    assert info.duration_s == pytest.approx(2.0, abs=0.03)
    mono = np.concatenate(list(read_mono(path)))
    planar = np.concatenate(list(read_planar(info)), 1)
    assert planar.shape == (1, info.n_samples) and len(mono) == round(info.n_samples / 3)
    assert onsets_s(mono, 16000) == pytest.approx([0, 1.2, 1.9], abs=0.02)
    assert onsets_s(planar[0], RATE_HZ) == pytest.approx([0, 1.2, 1.9], abs=0.02)
    with SharedSpeech(info) as shared:
        assert np.array_equal(np.concatenate(list(shared.mono())), mono)


@pytest.mark.parametrize(("with_picture", "late_s"), [(True, 0.5), (False, 0)])
def test_sound_that_begins_after_the_picture_stays_later(with_picture: bool, late_s: float, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "late.mkv", [(0.5, tone(1))], with_picture=with_picture)
    assert onsets_s(np.concatenate(list(read_mono(path))), 16000) == pytest.approx([late_s], abs=0.02)


def test_time_stamps_that_jump_by_hours_are_no_silence(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "jump.mkv", [(0, tone(0.5)), (90000, tone(0.5)), (90001, tone(0.5))])
    assert probe_speech(path).duration_s == pytest.approx(2.0, abs=0.05)


def two_tracks(path: Path, default: int | None) -> Path:
    """A tone of 440 Hz, then one of 1000 Hz."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("aac", rate=RATE_HZ, layout="mono") for _ in range(2)]
        for track, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if track == default else 0
        for stream, hz in zip(streams, (440, 1000), strict=True):
            frame = av.AudioFrame.from_ndarray(tone(1, hz)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def pitch_hz(samples: NDArray[np.float32], rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples))
    return float(np.argmax(spectrum) * rate_hz / len(samples))


@pytest.mark.parametrize("default", [0, 1])
def test_the_default_track_is_the_speech_and_any_can_be_chosen(default: int, tmp_path: Path) -> None:
    path = two_tracks(tmp_path / "two.mkv", default)
    info = probe_speech(path)
    assert info.track == default
    assert pitch_hz(np.concatenate(list(read_mono(path))), 16000) == pytest.approx((440, 1000)[default], abs=5)
    other = probe_speech(path, log_mel_maximum, track=1 - default)
    for samples, rate_hz in (
        (np.concatenate(list(read_mono(other))), 16000),
        (np.concatenate(list(read_planar(other)), 1)[0], RATE_HZ),
    ):
        assert pitch_hz(samples, rate_hz) == pytest.approx((1000, 440)[default], abs=5)
    with SharedSpeech(other) as shared:
        samples = np.concatenate(list(shared.mono()))
        assert pitch_hz(samples, 16000) == pytest.approx((1000, 440)[default], abs=5)
    with pytest.raises(InputError, match="no sound track 2: it has 2 sound tracks"):
        probe_speech(path, track=2)


@pytest.mark.parametrize("weight", [-1.0, -0.9])
def test_channels_that_cancel_each_other_out_are_not_mixed(
    weight: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = np.round(tone(1) * 30000).astype(np.int16)
    stereo = write_wav(tmp_path / "anti.wav", np.stack([one, np.round(weight * one).astype(np.int16)], 1), RATE_HZ)
    left = write_wav(tmp_path / "left.wav", one, RATE_HZ)
    with caplog.at_level(logging.WARNING, "lipstream"):
        info = probe_speech(stereo, log_mel_maximum)
    assert info.mono_channel == 0 and [r.message for r in caplog.records] == [
        f"{stereo}: its channels cancel each other out; taking channel 1 alone"
    ]
    expected = np.concatenate(list(read_mono(left)))
    assert np.array_equal(np.concatenate(list(read_mono(info))), expected)
    assert info.log_mel_max == probe_speech(left, log_mel_maximum).log_mel_max
    with SharedSpeech(info) as shared:
        assert np.array_equal(np.concatenate(list(shared.mono())), expected)
    in_memory = speech_from(np.stack([one, weight * one]).astype(np.float32) / 32768, RATE_HZ)
    assert np.allclose(in_memory.samples, expected, atol=1e-4)


def test_a_single_loud_channel_among_six_is_mixed_as_ever(tmp_path: Path) -> None:
    centre = np.round(tone(0.5) * 30000).astype(np.int16)
    channels = np.stack([centre // 10, centre // 10, centre, 0 * centre, 0 * centre, 0 * centre], 1)
    assert probe_speech(write_wav(tmp_path / "surround.wav", channels, RATE_HZ)).mono_channel is None


def test_invalid_samples_are_warned_of_once_where_channels_cancel_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.stack([tone(0.5), -tone(0.5)])
    samples[:, 100] = np.nan
    with caplog.at_level(logging.WARNING, "lipstream"):
        speech_from(samples, RATE_HZ)
        probe_speech(write_float_wav(tmp_path / "nan.wav", samples[0], RATE_HZ), log_mel_maximum)
    assert sum("replaced by silence" in record.message for record in caplog.records) == 2


def test_the_sound_of_a_clip_is_not_late_where_both_begin_late(tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "clip.ts", [*range(25)], Fraction(1, 25), with_sound=True, bf="0")
    mono = np.concatenate(list(read_mono(clip)))
    assert len(mono) / 16000 == pytest.approx(1.0, abs=0.15)
