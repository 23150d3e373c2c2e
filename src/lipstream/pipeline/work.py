"""The working folder of a run in segments: what is kept in it, for whom, and the order of the work.

A folder may serve many runs. Each has a folder of its own in it, named by a digest of everything that its pieces depend
on, so that pieces of other inputs or settings are never taken. Every file in it appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.audio_features.features import ROWS_PER_FRAME
from lipstream.audio_features.mel import HOP_SIZE
from lipstream.errors import InputError, OutputError
from lipstream.face.detector import MultiFaceDetector
from lipstream.media.atomic import write_whole
from lipstream.media.audio import n_output_frames, read_mono
from lipstream.pipeline.analyse import FaceTable, analyse, for_video, rate_of, sha256_of
from lipstream.pipeline.build import settings_used
from lipstream.pipeline.clocks import Clocks
from lipstream.pipeline.file_job import Inputs
from lipstream.pipeline.known import check_loop, known_faces, save_known
from lipstream.pipeline.line import checked, recording_maximum
from lipstream.pipeline.pauses import with_pauses
from lipstream.pipeline.person import named_person
from lipstream.pipeline.plan import Segment, segment_frames, segments_of
from lipstream.pipeline.records import Clip, Components, Counts
from lipstream.pipeline.render import SegmentedRun
from lipstream.pipeline.run import too_short
from lipstream.pipeline.threads import ThreadGroup
from lipstream.settings import RuntimeSettings, SyncSettings
from lipstream.version import __version__

logger = logging.getLogger(__name__)

FACES = "faces.safetensors"
"""Name of the table of faces in a run's folder."""

_FORMAT = 2
_OF_THE_MACHINE = ("device", "threads")
"""Settings that change where a run is computed and not what comes out."""


class WorkFolder:
    """A run's own folder in a working folder, held by one process at a time.

    work: made if it is not there, removed with the run's folder where nothing else is in it. Raises OutputError where
    it cannot be made, or another process works in it.
    """

    def __init__(self, work: str | Path, key: str) -> None:
        self.work, self.path = Path(work), Path(work).resolve() / key
        with _folder_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o666)
        try:
            _hold(self._lock, self.path)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Let go of the folder, which stays."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def remove(self) -> None:
        """Remove the run's folder, and the working folder if it is empty then."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()
        with suppress(OSError):
            self.work.rmdir()


def key_of(
    components: Components,
    inputs: Inputs,
    settings: SyncSettings,
    runtime: RuntimeSettings,
    faces_sha256: str | None,
) -> str:
    """Return a digest of everything that the pieces of a run depend on."""
    used: dict[str, Any] = settings_used(components, settings, runtime)
    source = components.model.source  # None for exported networks, of whose files the configuration has digests
    paths = [] if source is None else [path.resolve() for path in vars(source.paths).values()]
    described = {
        "format": [_FORMAT, __version__],
        "video": sha256_of(inputs.video.path),
        "speech": sha256_of(inputs.speech.path),
        "settings": {name: value for name, value in used.items() if name not in _OF_THE_MACHINE},
        "device": components.device.type,
        "left_out": components.model.left_out,
        "configuration": asdict(components.model.config),
        "model": [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths],
        "faces": faces_sha256,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:24]


def prepare(
    components: Components,
    inputs: Inputs,
    settings: SyncSettings,
    folder: Path,
    clocks: Clocks,
    threads: ThreadGroup,
    workers: int,
    segment_s: float | None,
) -> SegmentedRun:
    """Analyse and plan a run in its folder; what is there already is taken. Raises NoFaceError, InputError.

    workers, segment_s: see `segment_frames`. An earlier plan stays, whoever it was made for, unless segment_s is given.
    """
    check_loop(settings.loop)
    components, rate = for_video(components, inputs.video), rate_of(components, inputs.video, settings)
    n_frames = n_output_frames(inputs.speech, rate)
    clip = _clip(components, inputs, settings, n_frames, rate, threads)
    samples = _write_samples(clip.samples, folder / "speech.f32", threads)
    if samples.stat().st_size < 4 * ROWS_PER_FRAME * HOP_SIZE:  # not one row of audio features
        raise too_short(inputs.speech.path)
    path = folder / FACES
    table = _table_there(path)
    if table is None:
        table = analyse(components, inputs.video, settings, clocks, threads, n_frames)
        table.save(path, overwrite=True)
    config = components.model.config
    is_given = not isinstance(components.detector, MultiFaceDetector)
    known = known_faces(table, clip, settings.resolution or config.resolution, is_given=is_given)
    save_known(known, folder / "known.safetensors")
    length = segment_frames(len(known), workers, segment_s, rate)
    planned = segments_of(known.has_face.tolist(), config.num_frames, components.batch, length, known.begins.tolist())
    pieces = folder / "pieces"
    pieces.mkdir(exist_ok=True)
    for unfinished in pieces.glob(".*.part.mp4"):  # of a run that was killed
        unfinished.unlink()
    counts = Counts()
    for has_face in known.has_face.tolist():
        counts.add(has_face)
    return SegmentedRun(
        video=inputs.video,
        speech=inputs.speech,
        samples=samples,
        log_mel_max=clip.log_mel_max,
        table=path,
        pieces=pieces,
        known=folder / "known.safetensors",
        n_frames=len(known),
        faces=counts.frames_with_face,
        settings=settings,
        segments=_kept_plan(folder / "segments.json", planned, segment_s is not None),
        frame_rate=rate,
        spans_without=tuple(counts.spans_without),
    )


def _clip(
    components: Components,
    inputs: Inputs,
    settings: SyncSettings,
    n_frames: int,
    frame_rate: Fraction,
    threads: ThreadGroup,
) -> Clip:
    """Return the clip of the whole run, without its frames."""
    video = inputs.video
    clip = Clip(
        name=video.path,
        picture_bytes=video.picture_bytes,
        frames=(),
        samples=read_mono(inputs.speech),
        log_mel_max=recording_maximum(components, inputs.speech, threads),
        n_frames=n_frames,
        settings=settings,
        pixel_aspect=video.pixel_aspect,
        model_departs=components.model.config.departs,
        person=named_person(components.detector, video, settings, frame_rate),
        frame_rate=frame_rate,
    )
    return with_pauses(clip, lambda: checked(read_mono(inputs.speech), threads))


def _kept_plan(path: Path, planned: tuple[Segment, ...], is_new: bool) -> tuple[Segment, ...]:
    """Return the plan that is in a folder, or write the one that is planned."""
    if path.is_file() and not is_new:
        with suppress(ValueError, TypeError, IndexError):  # a file that is not whole
            kept = tuple(Segment(int(start), int(stop)) for start, stop in json.loads(path.read_text("utf-8")))
            if kept[0].start == 0 and kept[-1].stop == planned[-1].stop:
                return kept
    write_whole(path, json.dumps([(segment.start, segment.stop) for segment in planned]).encode())
    return planned


def missing(run: SegmentedRun) -> list[list[Segment]]:
    """Return the segments that are not rendered yet, those that follow one another together."""
    parts: list[list[Segment]] = []
    for segment in run.segments:
        if run.is_rendered(segment):
            continue
        if parts and parts[-1][-1].stop == segment.start:
            parts[-1].append(segment)
        else:
            parts.append([segment])
    return parts


def _table_there(path: Path) -> FaceTable | None:
    try:
        return FaceTable.load(path) if path.is_file() else None
    except InputError as error:
        logger.warning("%s", error)
        return None


def _write_samples(samples: Iterable[NDArray[np.float32]], path: Path, threads: ThreadGroup) -> Path:
    """Write a recording as the model takes it, so that any part of it can be read by itself."""
    if not path.exists():
        hidden = path.with_name(f".{secrets.token_hex(4)}.part")
        with _folder_errors(path):
            try:
                with hidden.open("wb") as file:
                    for block in checked(samples, threads):
                        file.write(np.ascontiguousarray(block, np.float32).tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                hidden.replace(path)
            finally:
                hidden.unlink(missing_ok=True)
    return path


def _hold(descriptor: int, path: Path) -> None:
    """Lock a file as long as it is open; a process that is killed lets go of it."""
    try:
        import fcntl
    except ImportError:  # Windows: two runs of the same key render the same pieces, which costs time and no harm
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            "another run with the same inputs and settings works in it", file=path, fix="wait for it, or stop it"
        ) from None


@contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        fix = "free some space or choose another folder with --work"
        raise OutputError(f"cannot be written ({reason})", file=path, fix=fix) from error
