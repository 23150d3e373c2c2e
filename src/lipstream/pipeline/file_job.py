"""The inputs of a run over files, and the work that they make."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipstream.audio_features.mel import log_mel_maximum
from lipstream.face.detector import MultiFaceDetector
from lipstream.media.audio import SpeechInfo, n_output_frames, probe_speech
from lipstream.media.c2pa_manifest import Signing
from lipstream.media.conversation import probe_conversation, recordings_of
from lipstream.media.origin import Origin
from lipstream.media.output_file import check_output
from lipstream.media.reader import VideoInfo, probe
from lipstream.media.writer import VideoWriter
from lipstream.pipeline.analyse import FaceTable
from lipstream.pipeline.known import check_loop, known_faces
from lipstream.pipeline.records import Components
from lipstream.pipeline.run import Job
from lipstream.settings import SyncSettings


@dataclass(frozen=True)
class Inputs:
    """What the inputs of a run are."""

    video: VideoInfo
    speech: SpeechInfo


def probe_inputs(
    video: str | Path | VideoInfo,
    audio: str | Path | SpeechInfo | Mapping[str, str | Path],
    output: str | Path,
    *,
    overwrite: bool,
    audio_track: int | None = None,
) -> Inputs:
    """Probe what is not probed yet, and check the output; LipSync takes what is returned in place of the paths.

    audio: see LipSync. audio_track: see SyncSettings.

    Raises the InputError or OutputError that a run with these files would begin with.
    """
    speech = probe_audio(audio, audio_track)
    inputs = Inputs(video if isinstance(video, VideoInfo) else probe(video), speech)
    paths = [one.path for _, one in recordings_of(speech)]
    check_output(output, inputs=(inputs.video.path, *paths), overwrite=overwrite)
    return inputs


def probe_audio(audio: str | Path | SpeechInfo | Mapping[str, str | Path], audio_track: int | None) -> SpeechInfo:
    """Probe a recording, or those of several people, unless that is done. Raises InputError."""
    if isinstance(audio, SpeechInfo):
        return audio
    if isinstance(audio, Mapping):
        return probe_conversation(audio, log_mel_maximum, track=audio_track)
    return probe_speech(audio, log_mel_maximum, track=audio_track)


def file_job(
    components: Components,
    inputs: Inputs,
    output: str | Path,
    settings: SyncSettings,
    *,
    overwrite: bool,
    signing: Signing | None = None,
    faces: FaceTable | None = None,
) -> Job:
    """Return the work of lip-syncing one file. faces: of the video, where they are known. signing: see signing_for."""
    video, config = inputs.video, components.model.config
    frame_rate = settings.rate_hz(video.nominal_rate, model_departs=config.departs)
    n_frames = n_output_frames(inputs.speech, frame_rate)
    source = None if settings.strip_metadata else video.path
    known = None
    if faces is not None:
        check_loop(settings.loop)
        is_given = not isinstance(components.detector, MultiFaceDetector)
        known = partial(known_faces, faces, resolution=settings.resolution or config.resolution, is_given=is_given)

    def open_writer(samples: Generator[NDArray[np.float32], None, None]) -> VideoWriter:
        return VideoWriter(
            output,
            width=video.width,
            height=video.height,
            frame_rate=frame_rate,
            color=video.color,
            speech=inputs.speech,
            speech_samples=samples,
            n_frames=n_frames,
            encoding=settings,
            layout=video.layout,
            sample_aspect_ratio=video.sample_aspect_ratio,
            overwrite=overwrite,
            source=source,
            origin=Origin(config.name, source, signing),
        )

    return Job(video, inputs.speech, n_frames, settings, open_writer, frame_rate, known)
