"""Several people of one film, each with a recording, in one pass; and the sum of the recordings, which is the sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.media import write_wav
from helpers.pipeline import FAST, KnownFace, write_clip
from lipstream import LipSync, RuntimeSettings, SyncSettings
from lipstream.errors import NoFaceError, OutputError, SettingsError
from lipstream.face.detector import Face
from lipstream.media.audio import SharedSpeech, probe_speech, read_planar
from lipstream.media.conversation import probe_conversation, sound_of
from lipstream.media.picture import FilmedPicture
from lipstream.media.reader import read_frames
from lipstream.models.load import Model
from lipstream.scale.segments import sync_in_segments


class TwoFaces(KnownFace):
    """A detector that finds a face in each half of a frame."""

    def __init__(self, landmarks: NDArray[np.float64], width: int) -> None:
        super().__init__(landmarks)
        self.width = width

    def detect_all(self, image: NDArray[np.uint8]) -> list[Face]:
        left, top = self.landmarks.min(0) - 40
        right, bottom = self.landmarks.max(0) + 60
        return [
            Face((left + shift, top, right + shift, bottom), 1.0, self.landmarks + np.array([shift, 0]))
            for shift in (0, self.width)
        ]


@pytest.fixture
def sync(model: Model, recorded: dict[str, NDArray[Any]]) -> LipSync:
    width = recorded["frames"][0].shape[1]
    return LipSync(model, TwoFaces(recorded["landmarks"][0], width), RuntimeSettings(device="cpu", threads=2))


@pytest.fixture
def clip(recorded: dict[str, NDArray[Any]], tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", [np.concatenate([recorded["frames"][i % 3]] * 2, 1) for i in range(8)])


def speech(path: Path, duration_s: float, seed: int, rate_hz: int = 16000, channels: int = 1) -> Path:
    noise = np.random.default_rng(seed).normal(0, 2000, (round(duration_s * rate_hz), channels)).astype(np.int16)
    return write_wav(path, noise, rate_hz)


def halves(path: Path) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The luma of the left and the right half of each frame."""
    for frame in read_frames(path):
        assert isinstance(frame.picture, FilmedPicture)
        left, right = np.split(frame.picture.planes[0], 2, axis=1)
        yield left, right


def test_each_person_says_what_they_say_alone(sync: LipSync, clip: Path, tmp_path: Path) -> None:
    settings = replace(FAST, loop="hold")
    recordings = {"left": speech(tmp_path / "a.wav", 0.4, 1), "right": speech(tmp_path / "b.wav", 0.4, 2)}
    result = sync(clip, recordings, tmp_path / "both.mp4", settings)
    assert (result.frames, result.frames_with_face) == (10, 10)
    for side, (who, recording) in enumerate(recordings.items()):
        sync(clip, recording, tmp_path / f"{who}.mp4", replace(settings, face=who))
        alone = list(halves(tmp_path / f"{who}.mp4"))
        together = list(halves(tmp_path / "both.mp4"))
        assert all(np.array_equal(one[side], both[side]) for one, both in zip(alone, together, strict=True))
        assert not any(np.array_equal(one[1 - side], both[1 - side]) for one, both in zip(alone, together, strict=True))


def test_the_sum_goes_on_to_the_end_of_the_longest(tmp_path: Path) -> None:
    loud = speech(tmp_path / "a.wav", 1.3, 1, 48000, channels=2)
    late = speech(tmp_path / "b.wav", 2.1, 2, 16000)
    both = probe_conversation({"0": loud, "1": late}, lambda blocks: max(float(block.max()) for block in blocks))
    assert (both.sample_rate_hz, both.channels, both.n_samples) == (48000, 2, 100800)
    assert [(who, one.path) for who, one in both.recordings] == [("0", loud), ("1", late)]
    readers = [SharedSpeech(one) for _, one in both.recordings]
    total = np.concatenate(list(sound_of(both, readers)), 1)
    assert total.shape == (2, 100800)
    first, second = (np.concatenate(list(read_planar(probe_speech(path))), 1) for path in (loud, late))
    others = total - np.pad(first, ((0, 0), (0, total.shape[1] - first.shape[1])))
    assert np.abs(others[0] - others[1]).max() < 1e-6
    assert np.abs(others[0, ::3][100:-100] - second[0, 100:-100]).mean() < 0.3 * np.abs(second).mean()


def test_the_same_recording_twice_is_twice_as_loud(tmp_path: Path) -> None:
    path = speech(tmp_path / "a.wav", 0.5, 1)
    both = probe_conversation({"0": path, "1": path}, lambda blocks: 0.0)
    twice = np.concatenate(list(sound_of(both, [SharedSpeech(one) for _, one in both.recordings])), 1)
    np.testing.assert_allclose(twice, 2 * np.concatenate(list(read_planar(probe_speech(path))), 1), atol=1e-6)


def test_what_does_not_go_with_several_recordings(sync: LipSync, clip: Path, tmp_path: Path) -> None:
    recordings = {"left": speech(tmp_path / "a.wav", 0.2, 1), "7": speech(tmp_path / "b.mp4.wav", 0.2, 2)}
    with pytest.raises(NoFaceError, match=r"\(7\)"):
        sync(clip, recordings, tmp_path / "out.mp4", FAST)
    assert not (tmp_path / "out.mp4").exists()
    with pytest.raises(SettingsError, match="one person"):
        sync(clip, recordings, tmp_path / "out.mp4", FAST, face=(0, 0, 9, 9))
    with pytest.raises(SettingsError, match="segments"):
        sync_in_segments([sync], clip, recordings, tmp_path / "out.mp4", FAST)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="no recording"):
        sync(clip, {}, tmp_path / "out.mp4", SyncSettings())
    film = tmp_path / "film.mp4"
    clip.rename(film)
    with pytest.raises(OutputError, match="also an input"):
        sync(film, {"left": recordings["left"]}, film, FAST, overwrite=True)
