"""Frames in memory through LipSync, and the public names with their signatures."""

from __future__ import annotations

import inspect
import itertools
import threading
import time
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lipstream
from helpers.pipeline import KnownFace, psnr_db
from lipstream import Cancelled, InputError, LipSync, NoFaceError, SettingsError, SyncSettings
from lipstream.bundled import sample
from lipstream.diffusion.sampling import UNetDenoiser
from lipstream.encoding_settings import EncodingSettings
from lipstream.media.audio import probe_speech, read_mono, read_planar
from lipstream.media.memory import Images, speech_from
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


@pytest.mark.parametrize(
    ("n_blank", "n_images", "settings"),
    [(0, N_FRAMES, SyncSettings()), (3, 10, SyncSettings(detect_every=4)), (0, 7, SyncSettings(loop="hold"))],
    ids=["as-long", "first-face-late-and-pingpong", "hold"],
)
def test_frames_in_memory_are_those_of_the_file_call(
    sync: LipSync,
    images: list[NDArray[np.uint8]],
    speech: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_blank: int,
    n_images: int,
    settings: SyncSettings,
) -> None:
    given = [*[np.zeros_like(images[0])] * n_blank, *images[: n_images - n_blank]]
    with VideoWriter(
        tmp_path / "in.mp4",
        width=512,
        height=512,
        color=None,
        speech=None,
        n_frames=len(given),
        encoding=EncodingSettings(crf=0),
    ) as writer:
        for image in given:
            writer.write(image)
    # The file holds what its own decoder gives: those images are the ones to hand over.
    decoded = [frame.image for frame in read_frames(tmp_path / "in.mp4")]
    write_wav(tmp_path / "speech.wav", speech)
    spoken = np.concatenate(list(read_mono(tmp_path / "speech.wav")))
    written: list[NDArray[np.uint8]] = []
    monkeypatch.setattr(VideoWriter, "write", recording(VideoWriter.write, written))
    sync(tmp_path / "in.mp4", tmp_path / "speech.wav", tmp_path / "out.mp4", settings)
    before = [image.copy() for image in decoded]
    made = list(sync.frames(decoded, spoken, RATE_HZ, settings))
    assert len(made) == len(written) == N_FRAMES
    for a, b in zip(made, written, strict=True):
        # A file's frame keeps its samples but for the pixels that have changed, whose chroma is shared by four.
        assert psnr_db(a, b) > 58
        assert np.abs(a.astype(int) - b).max() <= 16
        assert (a != b).any(2).mean() < 0.1
    assert any(not np.array_equal(a, b) for a, b in zip(made, decoded, strict=False))
    assert all(np.array_equal(a, b) for a, b in zip(decoded, before, strict=True))  # the inputs are left alone


@pytest.mark.parametrize("rate_hz", [16000, 44100])
def test_samples_in_memory_are_taken_as_those_of_a_recording(tmp_path: Path, rate_hz: int) -> None:
    noise = np.random.default_rng(0).normal(0, 3000, (round(1.3 * rate_hz), 2)).astype("<i2")
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((2, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(noise.tobytes())
    recorded = np.concatenate(list(read_mono(tmp_path / "speech.wav")))
    planar = np.concatenate(list(read_planar(probe_speech(tmp_path / "speech.wav"))), axis=1)
    for samples in (planar, np.array_split(planar, 37, axis=1)):
        found = speech_from(samples, rate_hz)
        np.testing.assert_array_equal(found.samples, recorded)
        assert found.n_frames == round(25 * 1.3)


def recording(write: Any, written: list[NDArray[np.uint8]]) -> Any:
    def recorded(self: VideoWriter, picture: Any) -> None:
        written.append(picture.image())
        write(self, picture)

    return recorded


def write_wav(path: Path, samples: NDArray[np.float32]) -> None:
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


def test_progress_is_reported_while_frames_are_waited_for(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    reports: list[tuple[int, Any]] = []
    frames = sync.frames(
        images, speech, RATE_HZ, on_progress=lambda progress: reports.append((threading.get_ident(), progress))
    )
    assert reports == []
    assert len(list(frames)) == N_FRAMES
    assert {thread for thread, _ in reports} == {threading.get_ident()}
    first, last = reports[0][1], reports[-1][1]
    assert (first.frames, first.n_frames, {stage.frames for stage in first.stages}) == (0, N_FRAMES, {0})
    assert (last.frames, {stage.frames for stage in last.stages}) == (N_FRAMES, {N_FRAMES})


def test_speech_comes_in_blocks_too(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    short = speech[: 4 * RATE_HZ // 25]
    blocks = (short[start : start + 999] for start in range(0, len(short), 999))
    made, expected = (list(sync.frames(images, samples, RATE_HZ)) for samples in (blocks, short))
    np.testing.assert_array_equal(made, expected)


class Again:
    """Images that can be iterated again, not indexed."""

    def __init__(self, images: list[NDArray[np.uint8]]) -> None:
        self.images = images

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return iter(self.images)


@pytest.mark.parametrize("held_bytes", [1, 2**30])
def test_images_are_iterated_again_for_longer_speech(
    images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    monkeypatch.setattr("lipstream.media.memory.MAX_HELD_BYTES", held_bytes)
    order = [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1]
    for source in (images[:3], Again(images[:3]), np.array(images[:3])):
        frames = list(Images(source, len(order), "pingpong").frames())
        assert [frame.source_index for frame in frames] == order
        assert [frame.is_repeat for frame in frames] == [index >= 3 for index in range(len(order))]
        for frame in frames:
            np.testing.assert_array_equal(frame.image, images[frame.source_index])
            assert frame.image is not images[frame.source_index]


def test_a_last_image_that_is_held_is_as_it_was_given() -> None:
    def reused() -> Iterator[NDArray[np.uint8]]:
        buffer = np.zeros((2, 2, 3), np.uint8)
        for value in (1, 2):
            buffer[:] = value
            yield buffer
        buffer[:] = 9

    assert [int(frame.image[0, 0, 0]) for frame in Images(reused(), 4, "hold").frames()] == [1, 2, 2, 2]


def test_a_thread_that_holds_unfinished_frames_is_not_left_waiting(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    frames = sync.frames(images, speech, RATE_HZ)
    next(frames)
    with pytest.raises(SettingsError, match="has not exhausted"):
        next(sync.frames(images, speech, RATE_HZ))
    frames.close()
    assert next(sync.frames(images, speech, RATE_HZ)).shape == images[0].shape


def test_closing_ends_unfinished_frames_and_leaves_what_is_shared(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    before = threading.enumerate()
    with LipSync(sync.model, sync.detector, replace(sync.runtime, threads=1)) as other:
        frames = other.frames(images, speech, RATE_HZ)
        next(frames)
    assert threading.enumerate() == before
    assert list(frames) == []
    with pytest.raises(SettingsError, match="closed"):
        next(other.frames(images, speech, RATE_HZ))
    assert next(sync.frames(images, speech, RATE_HZ)).shape == images[0].shape


def test_a_face_is_chosen_by_a_box_or_a_callback(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    small = images[0][::2, ::2]
    two = np.concatenate([images[0], np.pad(small, ((256, 0), (0, 0), (0, 0)))], axis=1)
    short = speech[: RATE_HZ // 25]

    def matrix(face: Any) -> NDArray[np.float32]:
        (crop,) = sync.crops([two], short, RATE_HZ, face=face)
        assert crop.affine_matrix is not None
        return crop.affine_matrix

    largest, smallest = matrix(None), matrix(lambda faces: faces[-1])
    np.testing.assert_array_equal(matrix((0, 0, 512, 512)), largest)
    np.testing.assert_array_equal(matrix((512, 0, 768, 512)), smallest)
    scale = np.linalg.det(smallest[:, :2]) / np.linalg.det(largest[:, :2])
    assert scale == pytest.approx(4, rel=0.2)
    with pytest.raises(NoFaceError):
        matrix(lambda faces: None)
    with pytest.raises(SettingsError, match="finds one face"):
        known = LipSync(sync.model, KnownFace(np.zeros((3, 2))), sync.runtime)
        list(known.crops([two], short, RATE_HZ, face=lambda faces: faces[0]))


def test_a_denoiser_takes_the_place_of_the_network(
    sync: LipSync, images: list[NDArray[np.uint8]], speech: NDArray[np.float32]
) -> None:
    calls: list[bool] = []

    class Counting(UNetDenoiser):
        def __call__(self, *args: Any, **more: Any) -> Any:
            calls.append(True)
            return super().__call__(*args, **more)

    short = speech[: 2 * RATE_HZ // 25]
    other = LipSync(sync.model, sync.detector, sync.runtime, denoiser=Counting(sync.model.unet))
    np.testing.assert_array_equal(list(other.frames(images, short, RATE_HZ)), list(sync.frames(images, short, RATE_HZ)))
    assert calls


PUBLIC_API = Path(__file__).parent / "public_api.txt"
"""What lipstream exports; after a change that is meant, replace it by what the test prints."""


def test_the_public_names_and_signatures() -> None:
    assert set(lipstream.__all__) <= set(dir(lipstream))
    lines = [line for name in sorted(lipstream.__all__) for line in described(name, getattr(lipstream, name))]
    print("\n".join(lines))
    assert lines == PUBLIC_API.read_text().splitlines()
    with pytest.raises(AttributeError, match="LipSink"):
        _ = lipstream.LipSink


def described(name: str, thing: Any) -> Iterator[str]:
    """Yield lines for a public name: of a class its bases, how it is made and what it has, of all the signatures."""
    if not inspect.isclass(thing):
        yield f"{name}{signature(thing)}" if inspect.isfunction(thing) else name
        return
    bases = ", ".join(base.__name__ for base in thing.__bases__ if base is not object)
    yield f"class {name}({bases})"
    if "Protocol" not in bases:
        yield f"    {signature(thing)}"
    for member, value in sorted(vars(thing).items()):
        if member == "__call__" or not member.startswith("_"):
            value = value.__func__ if isinstance(value, classmethod) else value
            if inspect.isfunction(value):
                yield f"    {member}{signature(value)}"
            elif isinstance(value, property):
                yield f"    {member}: property"


def signature(thing: Any) -> str:
    """Return the signature without the quotation marks round annotations, which depend on the Python version."""
    return str(inspect.signature(thing)).replace("'", "").removesuffix(" -> None")
