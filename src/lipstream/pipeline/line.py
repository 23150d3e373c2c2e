"""The straight components: a clip and a recording go in, a lip-synced clip comes out.

    read -> detect -> track -> align -> windows -> denoise -> composite -> write
    speech -> features -------------------^

Every stage is an iterator over small records, in order, in threads of its own. One budget bounds the frames in flight
in the whole run, so memory does not grow with the clip or with the threads. State that depends on order lives in the
one sequential stage `_track`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.audio_features.features import feature_rows, frame_windows
from lipstream.audio_features.mel import N_MELS, log_mel_maximum
from lipstream.errors import InputError, NoFaceError
from lipstream.face.align import crop_faces
from lipstream.face.composite import paste_faces, resize_face
from lipstream.face.keyframes import Stretch
from lipstream.face.registry import Detector
from lipstream.face.tracking import FaceTrack
from lipstream.media.audio import SharedSpeech, SpeechInfo, read_mono
from lipstream.media.loop import read_looped
from lipstream.media.reader import Frame, VideoInfo, read_frames
from lipstream.media.writer import VideoWriter
from lipstream.pipeline.clocks import Clocks, StageClock, arriving, timed
from lipstream.pipeline.generate import FaceGenerator
from lipstream.pipeline.records import Aligned, Components, Counts, Matrix, Repainted
from lipstream.pipeline.threads import FrameBudget, ThreadGroup, grouped
from lipstream.pipeline.windows import FRAMES_PER_FACE, batches, gather
from lipstream.runtime.device import FaceGeometry
from lipstream.runtime.device_stream import DeviceStream
from lipstream.settings import SyncSettings

T = TypeVar("T")
R = TypeVar("R")
Landmarks = NDArray[np.float64]

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Job:
    """One clip to sync. n_frames: of the output, fewer with loop="trim".

    open_writer: begins the output, given the speech's samples.
    """

    video: VideoInfo
    speech: SpeechInfo
    n_frames: int
    settings: SyncSettings
    open_writer: Callable[[Generator[NDArray[np.float32], None, None]], VideoWriter]


def run(components: Components, job: Job, clocks: Clocks, threads: ThreadGroup) -> Counts:
    """Sync one clip and write it; the threads belong to the caller, who closes them.

    Raises NoFaceError, before anything is generated or encoded, and what the stages raise.
    """
    first_face = find_first_face(components, job, clocks.detect, threads)
    budget = FrameBudget(threads, frames_in_flight(components, job))
    counts = Counts()
    with SharedSpeech(job.speech) as speech, ExitStack() as output:
        writer = output.enter_context(job.open_writer(speech.planar()))
        for picture, has_face in _pictures(components, job, speech, first_face, clocks, threads, budget):
            with clocks.write.running():
                writer.write(picture)
            del picture
            budget.give_back()
            counts.frames_with_face += has_face
            counts.frames_without += not has_face
        if counts.frames_with_face + counts.frames_without == 0:
            raise InputError("too short to be synced", file=job.speech.path, fix="give at least 0.04 s of speech")
        threads.check()
        with clocks.write.running(frames=0):  # the encoder holds many frames back
            output.pop_all().close()
    return counts


def frames_in_flight(components: Components, job: Job) -> int:
    """Return how many frames a run may hold: as its memory allows, but as many as one call's windows need to fill up.

    Fewer would wait for one another for ever. A frame counts with its crop before and after.
    """
    resolution = job.settings.resolution or components.model.config.resolution
    crops = resolution * resolution * (3 + 4 * _FLOAT_BYTES)
    allowed = components.frame_memory_bytes // (job.video.width * job.video.height * 3 + crops)
    incomplete_groups = 2 * (components.geometry.frames - 1)
    return max(allowed, FRAMES_PER_FACE * components.model.config.num_frames * components.batch + incomplete_groups + 1)


def find_first_face(components: Components, job: Job, clock: StageClock, threads: ThreadGroup) -> int:
    """Return the index of the first frame with a face, so that a clip without one fails before anything is encoded.

    The frames before it count as done for `clock`; the run itself searches the others. Raises NoFaceError when no
    frame that the run would show has a face, or when the first has none and no_face is "error".
    """
    n_searched = 0
    with closing(_searched(components, job, clock, threads)) as searched:
        for has_face in searched:
            if has_face:
                return n_searched
            if job.settings.no_face == "error":
                raise _no_face_in(job.video, n_searched)
            clock.count(1)
            n_searched += 1
    raise NoFaceError(
        f"no usable face in the {n_searched} frames searched",
        file=job.video.path,
        fix="use a video with a face at least 50 px wide and 80 px high, turned towards the camera",
    )


def _searched(components: Components, job: Job, clock: StageClock, threads: ThreadGroup) -> Generator[bool, None, None]:
    """Yield whether each frame of the source has a face: the first by itself, in most clips it has one."""

    def has_face(frame: Frame) -> bool:
        return components.detector.detect(frame.image) is not None

    with threads.subgroup() as searching:
        frames = itertools.islice(read_frames(job.video.path), job.n_frames)
        for first in itertools.islice(frames, 1):
            with clock.running(frames=0):
                found = has_face(first)
            del first
            yield found
        budget = FrameBudget(searching, frames_in_flight(components, job))
        counted = budget.spend(frames)
        for found in searching.ordered_map(has_face, counted, components.threads, clock, lambda _: 0):
            budget.give_back()
            yield found


def _no_face_in(video: VideoInfo, index: int) -> NoFaceError:
    return NoFaceError(
        f"no usable face in frame {index}", file=video.path, fix="leave out --no-face error to pass it through"
    )


def _pictures(
    components: Components,
    job: Job,
    speech: SharedSpeech,
    first_face: int,
    clocks: Clocks,
    threads: ThreadGroup,
    budget: FrameBudget,
) -> Iterator[tuple[NDArray[np.uint8], bool]]:
    """Yield the frames of the output, and whether they have a generated face."""
    geometry, num_frames, settings = components.geometry, components.model.config.num_frames, job.settings
    resolution = settings.resolution or components.model.config.resolution

    frames = budget.spend(timed(read_looped(job.video.path, job.n_frames, settings.loop), clocks.read))
    stretches = _stretches(frames, settings.frames_per_detection(), first_face)
    n_new = partial(_n_new, first_face=first_face)
    found = threads.ordered_map(
        partial(_detect, components.detector), stretches, components.threads, clocks.detect, n_new
    )
    tracked = _track(found, resolution, job)
    aligned = by_groups(partial(align, resolution, components.streams.align), tracked, geometry, clocks.align, threads)

    audio = timed(_audio_features(components, job, speech, threads), clocks.features)

    windows = gather(aligned, audio, num_frames)
    generator = FaceGenerator(components, settings, threads)
    ready = generator.frames(batches(windows, components.batch), clocks)
    pasted = by_groups(partial(composite, components.streams.composite), ready, geometry, clocks.composite, threads)
    return arriving(pasted, clocks.write)


def _stretches(
    frames: Iterable[Frame], detect_every: int, first_face: int
) -> Iterator[tuple[Frame, Stretch | None, bool]]:
    """Yield frames with the stretch of `detect_every` that each belongs to, and whether it is to be searched.

    A stretch that begins before the first face has no face to go by: None.
    """
    stretch = None
    for frame in frames:
        index = frame.source_index
        if index % detect_every == 0:
            stretch = Stretch(index) if index >= first_face else None
        yield frame, stretch, not frame.is_repeat and index >= first_face


def _n_new(item: tuple[Frame, Stretch | None, bool], first_face: int) -> int:
    """Count a frame of `_stretches` unless `find_first_face` has counted it."""
    frame, _, _ = item
    return int(frame.index >= first_face)


def _detect(detector: Detector, item: tuple[Frame, Stretch | None, bool]) -> tuple[Frame, Landmarks | None]:
    """Return a frame's landmarks (3, 2), or None; those of a repeated frame are known already."""
    frame, stretch, is_searched = item
    face = None
    if is_searched:
        image = frame.image
        face = detector.detect(image) if stretch is None else stretch.find(detector, frame.source_index, image)
    return frame, None if face is None else face.landmarks


def _track(
    found: Iterable[tuple[Frame, Landmarks | None]], resolution: int, job: Job
) -> Iterator[tuple[Frame, Matrix | None]]:
    """Smooth the alignment over time. The only stage with state."""
    track = FaceTrack(resolution)
    for frame, landmarks in found:
        affine_matrix = track.update(frame.source_index, frame.is_repeat, landmarks)
        if affine_matrix is None and job.settings.no_face == "error":
            raise _no_face_in(job.video, frame.index)
        yield frame, affine_matrix


def by_groups(
    function: Callable[[Sequence[T]], Iterable[R]],
    items: Iterable[T],
    geometry: FaceGeometry,
    clock: StageClock,
    threads: ThreadGroup,
) -> Iterator[R]:
    """Yield what `function` makes of groups of frames, as many as the device takes together, in order."""
    groups = grouped(items, geometry.frames)
    results = threads.ordered_map(function, groups, geometry.threads, clock, frames=len)
    return itertools.chain.from_iterable(results)


def align(resolution: int, stream: DeviceStream, tracked: Sequence[tuple[Frame, Matrix | None]]) -> Iterable[Aligned]:
    """Crop the faces of frames."""
    found = [(frame.image, affine_matrix) for frame, affine_matrix in tracked if affine_matrix is not None]
    crops: Iterator[Tensor] = iter(())
    if found:
        with stream.running():
            images, affine_matrices = zip(*found, strict=True)
            crops = iter(crop_faces(images, affine_matrices, resolution, stream))
    return [Aligned(frame, matrix, None if matrix is None else next(crops)) for frame, matrix in tracked]


def _audio_features(components: Components, job: Job, speech: SharedSpeech, threads: ThreadGroup) -> Iterator[Tensor]:
    """Yield the audio features of each frame, on the device."""

    def checked(blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        for block in blocks:
            threads.check()
            yield block

    stream, at_once, encoder = (
        components.streams.features,
        components.model.config.num_frames,
        components.model.audio_encoder,
    )
    maximum = job.speech.log_mel_max
    if maximum is None or encoder.config.n_mels != N_MELS:
        maximum = log_mel_maximum(checked(read_mono(job.speech.path)), encoder.config.n_mels)
    attempts = components.networks.audio_encoder.attempts
    rows = feature_rows(lambda: checked(speech.mono()), encoder, attempts, maximum)
    features = frame_windows(rows, job.n_frames)
    while True:
        with stream.running():
            window = list(itertools.islice(features, at_once))
        if not window:
            return
        yield from window


def composite(stream: DeviceStream, repainted: Sequence[Repainted]) -> list[tuple[NDArray[np.uint8], bool]]:
    """Return the frames with their generated faces, and whether they have one."""
    faces = [(one.frame.image, one.face, one.affine_matrix) for one in repainted if one.face is not None]
    if faces:
        with stream.running():
            # The frames are the run's own (see Frame) and have been cropped already.
            images, crops, affine_matrices = zip(*faces, strict=True)
            paste_faces(images, resize_face(torch.stack(crops)), affine_matrices, stream)
    return [(one.frame.image, one.face is not None) for one in repainted]
