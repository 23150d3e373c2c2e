"""Frames in memory through LipSync, and the public names with their signatures."""

from __future__ import annotations

import inspect
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lipstream
from lipstream import Cancelled, InputError, LipSync, NoFaceError, SettingsError, SyncSettings
from lipstream.bundled import sample
from lipstream.media.audio import read_mono
from lipstream.media.reader import read_frames
from lipstream.media.writer import VideoWriter

N_FRAMES = 20
RATE_HZ = 16000


@pytest.fixture(scope="module")
def sync() -> Iterator[LipSync]:
    with LipSync.load("tiny", device="cpu", detector="mediapipe") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    return [frame.image for frame in itertools.islice(read_frames(sample.VIDEO), N_FRAMES)]


@pytest.fixture(scope="module")
def speech() -> NDArray[np.float32]:
    return np.concatenate(list(read_mono(sample.SPEECH)))[RATE_HZ : RATE_HZ + N_FRAMES * RATE_HZ // 25]


def test_frames_in_memory_are_those_of_the_file_call(
    sync: LipSync,
    images: list[NDArray[np.uint8]],
    speech: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The file holds what its own decoder gives: those images are the ones to hand over.
    with VideoWriter(
        tmp_path / "in.mp4", width=512, height=512, color=None, speech=None, n_frames=N_FRAMES, crf=0
    ) as writer:
        for image in images:
            writer.write(image)
    decoded = [frame.image for frame in read_frames(tmp_path / "in.mp4")]
    write_wav(tmp_path / "speech.wav", speech)
    spoken = np.concatenate(list(read_mono(tmp_path / "speech.wav")))
    written: list[NDArray[np.uint8]] = []
    monkeypatch.setattr(VideoWriter, "write", recording(VideoWriter.write, written))
    sync(tmp_path / "in.mp4", tmp_path / "speech.wav", tmp_path / "out.mp4")
    before = [image.copy() for image in decoded]
    made = list(sync.frames(decoded, spoken, RATE_HZ))
    assert len(made) == len(written) == N_FRAMES
    assert all(np.array_equal(a, b) for a, b in zip(made, written, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(made, decoded, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(decoded, before, strict=True))  # the inputs are left alone


def recording(write: Any, written: list[NDArray[np.uint8]]) -> Any:
    def recorded(self: VideoWriter, image: NDArray[np.uint8]) -> None:
        written.append(image.copy())
        write(self, image)

    return recorded


def write_wav(path: Path, samples: NDArray[np.float32]) -> None:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def test_images_are_asked_for_as_they_are_needed(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    asked = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal asked
        for image in itertools.cycle(images):
            asked += 1
            yield image

    long_speech = np.tile(speech, 20)  # 400 frames
    frames = sync.frames(endless(), long_speech, RATE_HZ)
    next(frames)
    frames.close()
    assert asked < 200
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("detect", "denoise", "align"))]
    assert len(list(sync.frames(images, speech, RATE_HZ))) == N_FRAMES  # and the next run is not disturbed


@pytest.mark.parametrize(("loop", "count"), [("pingpong", 8), ("hold", 8), ("trim", 3)])
def test_images_that_end_before_the_speech(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32], loop: Any, count: int
) -> None:
    settings = SyncSettings(loop=loop)
    made = list(sync.frames(images[:3], speech[: 8 * RATE_HZ // 25], RATE_HZ, settings))
    assert len(made) == count
    if loop == "pingpong":
        with pytest.raises(SettingsError, match=r"pingpong. needs the 3 images a second time"):
            list(sync.frames(iter(images[:3]), speech, RATE_HZ, settings))


def test_crops_and_matrices_without_pasting(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    blank = np.zeros_like(images[0])
    made = list(sync.crops([*images[:4], blank], speech[: 5 * RATE_HZ // 25], RATE_HZ))
    assert [crop.index for crop in made] == [0, 1, 2, 3, 4]
    for crop in made[:4]:
        assert crop.image is not None
        assert crop.affine_matrix is not None
        assert (crop.image.shape, crop.image.dtype) == ((128, 128, 3), np.uint8)
        assert crop.affine_matrix.shape == (2, 3)
        assert crop.image.std() > 10
    assert (made[4].image, made[4].affine_matrix) == (None, None)


def test_stereo_and_other_rates_are_speech_too(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    stereo = np.stack([speech, speech])
    (mono,), (both,) = (
        list(itertools.islice(sync.frames(images, samples, RATE_HZ), 1)) for samples in (speech, stereo)
    )
    assert np.array_equal(mono, both)
    assert len(list(sync.frames(images, np.repeat(speech, 3)[: 3 * RATE_HZ * 4 // 25], 3 * RATE_HZ))) == 4


def test_what_is_no_clip_is_refused(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    for bad, message in (
        ([], "there is no image"),
        ([images[0].astype(np.float32)], "not .height, width, 3. uint8"),
        ([images[0], images[1][:100]], "image 1 is .* image 0 is"),
    ):
        with pytest.raises(InputError, match=message):
            list(sync.frames(bad, speech, RATE_HZ))
    with pytest.raises(InputError, match="samples is int16, not float32"):
        list(sync.frames(images, np.zeros(100, np.int16), RATE_HZ))
    with pytest.raises(SettingsError, match="frame_rate_hz = 30"):
        list(sync.frames(images, speech, RATE_HZ, frame_rate_hz=30))
    with pytest.raises(NoFaceError, match="no usable face in the 4 frames"):
        list(sync.frames([np.zeros_like(images[0])] * 4, speech[: 4 * RATE_HZ // 25], RATE_HZ))


def test_a_run_in_memory_can_be_cancelled(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    cancel = threading.Event()
    frames = sync.frames(itertools.cycle(images), np.tile(speech, 50), RATE_HZ, cancel=cancel)
    next(frames)
    cancel.set()
    begun_s = time.monotonic()
    with pytest.raises(Cancelled):
        for _ in frames:
            pass
    assert time.monotonic() - begun_s < 10  # 2 s, with room for a busy machine


def test_the_public_names_and_signatures() -> None:
    names = [name for name in dir(LipSync) if not name.startswith("_")]
    assert names == ["close", "crops", "detector", "frames", "load", "model", "runtime"]
    in_memory = ["self", "images", "samples", "sample_rate_hz", "settings", "frame_rate_hz", "on_progress", "cancel"]
    assert list(inspect.signature(LipSync.frames).parameters) == in_memory
    assert list(inspect.signature(LipSync.crops).parameters) == in_memory
    assert list(inspect.signature(LipSync.load).parameters) == ["model", "runtime", "options"]
    call = list(inspect.signature(LipSync.__call__).parameters)
    assert call == ["self", "video", "audio", "output", "settings", "overwrite", "on_progress", "cancel", "clocks"]
    assert set(lipstream.__all__) <= set(dir(lipstream))
