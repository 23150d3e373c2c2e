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
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.audio_features.features import feature_rows, first_block_of, frame_windows
from lipstream.audio_features.mel import N_MELS, log_mel_maximum
from lipstream.errors import InputError
from lipstream.face.align import crop_faces
from lipstream.face.composite import paste_faces, resize_face
from lipstream.face.keyframes import Segment
from lipstream.face.registry import Detector
from lipstream.face.tracking import FaceTrack
from lipstream.media.audio import SharedSpeech, SpeechInfo, read_mono
from lipstream.media.loop import read_looped
from lipstream.media.reader import Frame, VideoInfo
from lipstream.media.writer import VideoWriter
from lipstream.pipeline.clocks import Clocks, StageClock, arriving, timed
from lipstream.pipeline.first_face import find_first_face, no_face_in_frame
from lipstream.pipeline.generate import FaceGenerator
from lipstream.pipeline.records import Aligned, Clip, Components, Counts, Matrix, Repainted
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
    """One file to lip-sync. n_frames: of the output, fewer with loop="trim".

    open_writer: begins the output, given the speech's samples. affine_matrices: see Clip.
    """

    video: VideoInfo
    speech: SpeechInfo
    n_frames: int
    settings: SyncSettings
    open_writer: Callable[[Generator[NDArray[np.float32], None, None]], VideoWriter]
    affine_matrices: Matrix | None = None


def run(components: Components, job: Job, clocks: Clocks, threads: ThreadGroup) -> Counts:
    """Lip-sync one file and write it; the threads belong to the caller, who closes them.

    Raises NoFaceError, before anything is generated or encoded, and what the stages raise.
    """
    video = job.video
    first_face = 0
    if job.affine_matrices is None:
        first_face = search_first_face(components, video, job.n_frames, job.settings, clocks, threads)
    counts = Counts()
    with SharedSpeech(job.speech) as speech, ExitStack() as output:
        writer = output.enter_context(job.open_writer(speech.planar()))
        threads.if_unfinished(writer.discard)
        clip = Clip(
            video.path,
            video.width,
            video.height,
            timed(read_looped(video.path, job.n_frames, job.settings.loop), clocks.read),
            speech.mono(),
            recording_maximum(components, job.speech, threads),
            job.n_frames,
            job.settings,
            first_face,
            job.affine_matrices,
        )
        for picture, has_face in arriving(pictures(components, clip, clocks, threads), clocks.write):
            with clocks.write.running():
                writer.write(picture)
            del picture
            counts.add(has_face)
        if counts.frames == 0:
            raise too_short(job.speech.path)
        threads.check()
        with clocks.write.running(frames=0):  # the encoder holds many frames back
            output.pop_all().close()
    return counts


def too_short(speech: Path) -> InputError:
    """Return the error of a recording that lasts not even one frame."""
    return InputError("too short to be synced", file=speech, fix="give at least 0.04 s of speech")


def search_first_face(
    components: Components,
    video: VideoInfo,
    n_frames: int,
    settings: SyncSettings,
    clocks: Clocks,
    threads: ThreadGroup,
) -> int:
    """Return the index of the first of `n_frames` frames with a face. Raises NoFaceError, see `find_first_face`."""
    return find_first_face(
        components.detector,
        video,
        n_frames,
        settings.no_face,
        clocks.detect,
        threads,
        n_threads=components.threads,
        frames_in_flight=frames_in_flight(components, video.width, video.height, settings),
    )


def recording_maximum(components: Components, speech: SpeechInfo, threads: ThreadGroup) -> float:
    """Return the log-mel maximum that the audio encoder's floor needs.

    It is what probing found, unless the encoder has another number of mel bands: then the speech is read once more.
    """
    n_mels = components.model.config.audio_encoder.n_mels
    if speech.log_mel_max is not None and n_mels == N_MELS:
        return speech.log_mel_max
    return log_mel_maximum(checked(read_mono(speech.path), threads), n_mels)


def frames_in_flight(components: Components, width: int, height: int, settings: SyncSettings) -> int:
    """Return how many frames a run may hold: as its memory allows, but as many as one call's windows need to fill up.

    Fewer would wait for one another for ever. A frame counts with its crop before and after.
    """
    resolution = settings.resolution or components.model.config.resolution
    crops = resolution * resolution * (3 + 4 * _FLOAT_BYTES)
    allowed = components.frame_memory_bytes // (width * height * 3 + crops)
    incomplete_groups = 2 * (components.geometry.frames - 1)
    return max(allowed, FRAMES_PER_FACE * components.model.config.num_frames * components.batch + incomplete_groups + 1)


def pictures(
    components: Components, clip: Clip, clocks: Clocks, threads: ThreadGroup
) -> Iterator[tuple[NDArray[np.uint8], bool]]:
    """Yield the output's frames, and whether they have a generated face; each is released when the next is taken."""
    budget = _budget(components, clip, threads)
    geometry = components.geometry
    ready = generated_faces(components, clip, clocks, threads, budget)
    pasted = by_groups(partial(composite, components.streams.composite), ready, geometry, clocks.composite, threads)
    for picture, has_face in pasted:
        yield picture, has_face
        del picture
        budget.give_back()


def crops(components: Components, clip: Clip, clocks: Clocks, threads: ThreadGroup) -> Iterator[Repainted]:
    """Yield the generated crops of the output's frames, not pasted back. One is released when the next is taken."""
    budget = _budget(components, clip, threads)
    for repainted in generated_faces(components, clip, clocks, threads, budget):
        yield repainted
        del repainted
        budget.give_back()


def _budget(components: Components, clip: Clip, threads: ThreadGroup) -> FrameBudget:
    return FrameBudget(threads, frames_in_flight(components, clip.width, clip.height, clip.settings))


def generated_faces(
    components: Components, clip: Clip, clocks: Clocks, threads: ThreadGroup, budget: FrameBudget
) -> Iterator[Repainted]:
    """Yield the frames of the output with their generated crops. Each is to be given back to `budget`."""
    geometry, num_frames, settings = components.geometry, components.model.config.num_frames, clip.settings
    resolution = settings.resolution or components.model.config.resolution

    frames = budget.spend(clip.frames)
    if clip.affine_matrices is not None:
        tracked = _known(frames, clip, clip.affine_matrices, clocks.detect)
    else:
        found = landmarks(components, frames, settings.frames_per_detection(), clip.first_face, clocks.detect, threads)
        tracked = _track(found, resolution, clip)
    aligned = by_groups(partial(align, resolution, components.streams.align), tracked, geometry, clocks.align, threads)

    audio = timed(_audio_features(components, clip, threads), clocks.features)

    windows = gather(aligned, audio, num_frames)
    generator = FaceGenerator(components, settings, threads)
    return generator.frames(batches(windows, components.batch), clocks)


def landmarks(
    components: Components,
    frames: Iterable[Frame],
    detect_every: int,
    first_face: int,
    clock: StageClock,
    threads: ThreadGroup,
) -> Iterator[tuple[Frame, Landmarks | None]]:
    """Yield frames with the landmarks (3, 2) of their faces, None without one. first_face: see Clip."""
    segments = _segments(frames, detect_every, first_face)
    detect, n_new = partial(_detect, components.detector), partial(_n_new, first_face=first_face)
    return threads.ordered_map(detect, segments, components.threads, clock, n_new)


def _known(
    frames: Iterable[Frame], clip: Clip, affine_matrices: Matrix, clock: StageClock
) -> Iterator[tuple[Frame, Matrix | None]]:
    """Yield frames with their affine matrices, which are known."""
    for frame in frames:
        if frame.source_index >= len(affine_matrices):
            fix = "leave the file unchanged during the run"
            raise InputError("it has more frames than when its faces were searched for", file=clip.name, fix=fix)
        affine_matrix = affine_matrices[frame.source_index]
        clock.count(1)
        yield frame, None if np.isnan(affine_matrix).any() else affine_matrix
        del frame  # waiting for the next one must not keep this one in memory


def _segments(
    frames: Iterable[Frame], detect_every: int, first_face: int
) -> Iterator[tuple[Frame, Segment | None, bool]]:
    """Yield frames with the segment of `detect_every` that each belongs to, and whether it is to be searched.

    A segment that begins before the first face has no face to go by: None.
    """
    segment = None
    for frame in frames:
        index = frame.source_index
        if index % detect_every == 0:
            segment = Segment(index) if index >= first_face else None
        yield frame, segment, not frame.is_repeat and index >= first_face


def _n_new(item: tuple[Frame, Segment | None, bool], first_face: int) -> int:
    """Count a frame of `_segments` unless `find_first_face` has counted it."""
    frame, _, _ = item
    return int(frame.index >= first_face)


def _detect(detector: Detector, item: tuple[Frame, Segment | None, bool]) -> tuple[Frame, Landmarks | None]:
    """Return a frame's landmarks (3, 2), or None; those of a repeated frame are known already."""
    frame, segment, is_searched = item
    face = None
    if is_searched:
        image = frame.image
        face = detector.detect(image) if segment is None else segment.find(detector, frame.source_index, image)
    return frame, None if face is None else face.landmarks


def _track(
    found: Iterable[tuple[Frame, Landmarks | None]], resolution: int, clip: Clip
) -> Iterator[tuple[Frame, Matrix | None]]:
    """Smooth the alignment over time. The only stage with state."""
    track = FaceTrack(resolution)
    for frame, landmarks in found:
        affine_matrix = track.update(frame.source_index, frame.is_repeat, landmarks)
        if affine_matrix is None and clip.settings.no_face == "error":
            raise no_face_in_frame(clip.name, frame.index)
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


def _audio_features(components: Components, clip: Clip, threads: ThreadGroup) -> Iterator[Tensor]:
    """Yield the audio features of each frame, on the device."""
    stream, model = components.streams.features, components.model
    config = model.audio_encoder.config
    first_block = first_block_of(clip.first_frame, config)
    rows = feature_rows(
        lambda: checked(clip.samples, threads),
        model.audio_encoder,
        components.networks.audio_encoder.attempts,
        clip.log_mel_max,
        first_block,
    )
    features = frame_windows(rows, clip.n_frames, clip.first_frame, first_block * config.n_audio_ctx)
    while True:
        with stream.running():
            window = list(itertools.islice(features, model.config.num_frames))
        if not window:
            return
        yield from window


def checked(blocks: Iterable[NDArray[np.float32]], threads: ThreadGroup) -> Iterator[NDArray[np.float32]]:
    """Yield the blocks while the run is not stopped: an hour of speech may be read at once."""
    for block in blocks:
        threads.check()
        yield block


def composite(stream: DeviceStream, repainted: Sequence[Repainted]) -> list[tuple[NDArray[np.uint8], bool]]:
    """Return the frames with their generated faces, and whether they have one."""
    faces = [(one.frame.image, one.face, one.affine_matrix) for one in repainted if one.face is not None]
    if faces:
        with stream.running():
            # The frames are the run's own (see Frame) and have been cropped already.
            images, crops, affine_matrices = zip(*faces, strict=True)
            paste_faces(images, resize_face(torch.stack(crops)), affine_matrices, stream)
    return [(one.frame.image, one.face is not None) for one in repainted]
