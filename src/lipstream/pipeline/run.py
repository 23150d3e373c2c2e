"""A run over files: a video and a recording, or several, go in, and one file comes out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import InputError
from lipstream.face.square_pixels import on_square_pixels
from lipstream.media.audio import MODEL_SAMPLE_RATE_HZ, SharedSpeech, SpeechInfo, read_mono
from lipstream.media.conversation import recordings_of, sound_of, with_silence
from lipstream.media.loop import read_looped
from lipstream.media.reader import Frame, VideoInfo
from lipstream.media.writer import VideoWriter
from lipstream.pipeline.clocks import Clocks, arriving, timed
from lipstream.pipeline.first_face import no_face_in
from lipstream.pipeline.line import checked, pictures, recording_maximum, search_first_face
from lipstream.pipeline.pauses import with_pauses
from lipstream.pipeline.person import named_person
from lipstream.pipeline.records import Clip, Components, Counts, KnownFaces, PreparedFaces
from lipstream.pipeline.threads import ThreadGroup
from lipstream.settings import FRAME_RATE_HZ, SyncSettings


@dataclass(frozen=True)
class Job:
    """One file to lip-sync. n_frames: of the output, fewer with loop="trim".

    open_writer: begins the output, given the speech's samples. faces: see Clip.known; searched for where None.
    prepared: see Clip.
    """

    video: VideoInfo
    speech: SpeechInfo
    n_frames: int
    settings: SyncSettings
    open_writer: Callable[[Generator[NDArray[np.float32], None, None]], VideoWriter]
    frame_rate: Fraction = Fraction(FRAME_RATE_HZ)
    faces: Callable[[Clip], KnownFaces] | None = None
    prepared: PreparedFaces | None = None


def run(components: Components, job: Job, clocks: Clocks, threads: ThreadGroup) -> Counts:
    """Lip-sync one file and write it; the threads belong to the caller, who closes them.

    Where several people say a recording each, their lines follow one another: what one gives is what the next is given,
    picture by picture, so that all is decoded and encoded once.

    Raises NoFaceError, before anything is generated or encoded, and what the stages raise.
    """
    video, recordings = job.video, recordings_of(job.speech)
    components = replace(
        components,
        detector=on_square_pixels(components.detector, video.pixel_aspect),
        frame_memory_bytes=components.frame_memory_bytes // len(recordings),
    )
    first_face = 0
    if job.faces is None:
        first_face = search_first_face(components, video, job.n_frames, job.settings, job.frame_rate, clocks, threads)
    results = [Generated(np.zeros(job.n_frames, np.bool_)) for _ in recordings]
    counts = Counts()
    with ExitStack() as opened, ExitStack() as output:
        readers = [opened.enter_context(SharedSpeech(speech)) for _, speech in recordings]
        writer = output.enter_context(job.open_writer(sound_of(job.speech, readers)))
        threads.if_unfinished(writer.discard)
        settings = job.settings
        frames: Iterator[Frame] = timed(
            read_looped(video.path, job.n_frames, settings.loop, job.frame_rate, deinterlace=settings.deinterlace),
            clocks.read,
        )
        for (who, speech), reader, result in zip(recordings, readers, results, strict=True):
            clip = replace(_clip(components, job, who, speech, threads), frames=frames, first_face=first_face)
            clip = replace(clip, samples=reader.mono() if who is None else _filled_up(job, reader))
            clip = with_pauses(clip, partial(_read_again, speech, threads))
            if job.faces is not None:
                clip = replace(clip, known=job.faces(clip), prepared=job.prepared)
            result.is_kept = clip.kept is not None
            frames = result.noted(pictures(components, clip, clocks, threads))
        for frame in arriving(frames, clocks.write):
            with clocks.write.running():
                writer.write(frame.picture)
            counts.add(any(result.has_face[frame.index] for result in results))
            del frame
        if counts.frames == 0:
            raise too_short(job.speech.path)
        for (who, _), result in zip(recordings, results, strict=True):
            if not result.has_face.any() and not result.is_kept:
                raise no_face_in(video.path, counts.frames, who)
        threads.check()
        with clocks.write.running(frames=0):  # the encoder holds many frames back
            output.pop_all().close()
    return counts


@dataclass
class Generated:
    """Which frames have a generated face of one person: (n,) bool. is_kept: pauses keep frames as filmed."""

    has_face: NDArray[np.bool_]
    is_kept: bool = False

    def noted(self, pasted: Iterable[tuple[Frame, bool]]) -> Iterator[Frame]:
        """Yield the frames, noting which have a face."""
        for frame, has_face in pasted:
            self.has_face[frame.index] = has_face
            yield frame
            del frame


def _clip(components: Components, job: Job, who: str | None, speech: SpeechInfo, threads: ThreadGroup) -> Clip:
    """Return what a job says of the clip of one recording, without frames and samples."""
    video, settings = job.video, job.settings if who is None else replace(job.settings, face=who)
    return Clip(
        name=video.path,
        picture_bytes=video.picture_bytes,
        frames=(),
        samples=(),
        log_mel_max=recording_maximum(components, speech, threads),
        n_frames=job.n_frames,
        settings=settings,
        pixel_aspect=video.pixel_aspect,
        model_departs=components.model.config.departs,
        person=named_person(components.detector, video, settings, job.frame_rate),
        frame_rate=job.frame_rate,
    )


def _filled_up(job: Job, reader: SharedSpeech) -> Iterator[NDArray[np.float32]]:
    """Yield one of several recordings with silence up to the end of the longest."""
    return with_silence(reader.mono(), round(MODEL_SAMPLE_RATE_HZ * job.n_frames / job.frame_rate))


def _read_again(speech: SpeechInfo, threads: ThreadGroup) -> Iterator[NDArray[np.float32]]:
    return checked(read_mono(speech), threads)


def too_short(speech: Path) -> InputError:
    """Return the error of a recording that lasts not even one frame."""
    return InputError("too short to be synced", file=speech, fix="give at least 0.04 s of speech")
