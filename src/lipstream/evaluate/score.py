"""Score one clip, ours or another system's: every measure that its files and this machine allow.

Frames are resampled to 25 per second, as in a run, and read once (SyncNet's crops once more), so memory does not grow
with the clip but for some numbers a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import InputError, LipstreamError
from lipstream.evaluate import openings as mouths
from lipstream.evaluate import sync_tracks, syncnet
from lipstream.evaluate.clip_meter import ClipMeter, Pictures, Seen, detect, look
from lipstream.evaluate.lip_metrics import MouthFinder
from lipstream.evaluate.perceptual import FaceNetworks, FrechetDistance
from lipstream.evaluate.region import CROP_PX
from lipstream.face.tracking import FaceTrack
from lipstream.media.audio import read_mono
from lipstream.media.reader import probe, read_frames
from lipstream.pipeline.clocks import StageClock
from lipstream.pipeline.threads import ThreadGroup
from lipstream.results import Progress, StageTime
from lipstream.runtime.cpu import default_threads
from lipstream.settings import FRAME_RATE_HZ

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class ClipFiles:
    """The files of one clip. reference: the true video of this speech. source: what the clip was made from.

    speech: the recording that the mouth should say; None takes the clip's own sound.
    """

    video: Path
    reference: Path | None = None
    source: Path | None = None
    speech: Path | None = None


@dataclass(frozen=True)
class Tools:
    """What measures: a mouth finder with its detector, and the networks that are at hand.

    fid, fvd: take what these compare, over all clips. absent: why a measure cannot be taken on this machine, by its
    name.
    """

    finder: MouthFinder
    syncnet: syncnet.SyncNet | None = None
    networks: FaceNetworks = field(default_factory=FaceNetworks)
    fid: FrechetDistance = field(default_factory=FrechetDistance)
    fvd: FrechetDistance = field(default_factory=FrechetDistance)
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """Values over time, one a frame: mouth openings by video (NaN without a mouth), loudness in dB of full scale.

    mean_distances: SyncNet's, by shift from -15 to 15; empty without it.
    """

    openings: dict[str, NDArray[np.float64]]
    levels_db: NDArray[np.float64]
    mean_distances: tuple[float, ...]


@dataclass(frozen=True)
class ClipScore:
    """The measures of one clip by name (measures.MEASURES, COUNTS), None where one is undefined.

    absent: why a measure is None, by its name.
    """

    files: ClipFiles
    measures: dict[str, float | None]
    absent: dict[str, str]
    series: Series


def score_clip(files: ClipFiles, tools: Tools, on_progress: OnProgress | None = None) -> ClipScore:
    """Measure a clip up to the end of the shortest of its videos. Raises InputError, NoFaceError, ModelError."""
    meter = ClipMeter(tools)
    expected = round((probe(files.video).duration_s or 0) * FRAME_RATE_HZ)
    with closing(_looked_at(files, tools.finder)) as frames:
        for index, seen in enumerate(frames):
            meter.add(seen)
            if on_progress is not None:
                stage = StageTime("measure", 0.0, index + 1)
                on_progress(Progress(index + 1, max(expected, index + 1), (stage,)))
    meter.check(files.video)
    absent = dict(tools.absent)
    samples = _speech(files, absent)
    levels = mouths.levels_db(samples, meter.frames)
    measures = meter.measures() | _spoken(meter.openings(), levels, absent)
    sync = _sync(files.video, meter.boxes, samples, tools, absent)
    if sync is not None:
        measures |= {"sync_c": sync.sync_c, "sync_d": sync.sync_d, "sync_offset": sync.offset}
    if files.reference is None:
        absent |= dict.fromkeys(_OF_REFERENCE, "no --reference")
    return ClipScore(files, measures, absent, Series(meter.openings(), levels, sync.mean_distances if sync else ()))


_OF_REFERENCE = (
    *("landmark_distance", "opening_correlation", "psnr_db", "ssim", "face_psnr_db", "face_ssim"),
    *("reference_sharpness", "reference_flicker", "reference_edge_step", "reference_open_in_silence"),
)
_OF_SPEECH = ("loudness_correlation", "open_in_silence", "silence_opening", "sync_c", "sync_d", "sync_offset")


def _looked_at(files: ClipFiles, finder: MouthFinder) -> Generator[Seen, None, None]:
    """Yield what is seen in each frame, in order; faces and mouths are searched for in threads."""
    track = FaceTrack(CROP_PX)
    with ThreadGroup() as threads:
        n = default_threads()
        found = threads.ordered_map(partial(detect, finder.detector), _together(files), n, StageClock("detect"))
        tracked = (
            (pictures, face, track.update(index, False, None if face is None else face.landmarks))
            for index, (pictures, face) in enumerate(found)
        )
        yield from threads.ordered_map(partial(look, finder), tracked, n, StageClock("look"))


def _together(files: ClipFiles) -> Iterator[Pictures]:
    """Yield the frames of a clip's videos together until the shortest ends. Raises InputError for unequal sizes."""
    names = [("video", files.video), ("reference", files.reference), ("source", files.source)]
    paths = [(name, path) for name, path in names if path is not None]
    info = probe(files.video)
    for _, path in paths[1:]:
        other = probe(path)
        if max(abs(other.width - info.width), abs(other.height - info.height)) > 1:  # an odd size was made even
            raise InputError(
                f"size {other.width}x{other.height} differs from {info.width}x{info.height} of {files.video}",
                file=path,
                fix="scale the videos to one size",
            )
    for frames in zip(*(read_frames(path) for _, path in paths), strict=False):
        height, width = min(f.picture.height for f in frames), min(f.picture.width for f in frames)
        images = {name: frame.image[:height, :width] for (name, _), frame in zip(paths, frames, strict=True)}
        yield Pictures(images["video"], images.get("reference"), images.get("source"))


def _speech(files: ClipFiles, absent: dict[str, str]) -> NDArray[np.float32]:
    """Return the recording, (n,) at 16 kHz; empty, with the reason noted, where the clip has no sound of its own."""
    try:
        return np.concatenate(list(read_mono(files.speech or files.video)))
    except InputError as error:
        if files.speech is not None:
            raise
        absent |= dict.fromkeys(_OF_SPEECH, f"no speech: {error.message}")
        return np.zeros(0, np.float32)


def _spoken(
    openings: dict[str, NDArray[np.float64]], levels: NDArray[np.float64], absent: dict[str, str]
) -> dict[str, float | None]:
    """Return what the mouths' openings and the loudness tell together."""
    silent = mouths.silent_frames(levels)
    own = mouths.in_silence(openings["video"], silent)
    found: dict[str, float | None] = {"silent_frames": own.frames}
    if len(levels):
        found["loudness_correlation"] = mouths.correlation(openings["video"], levels)
        found |= {"open_in_silence": own.open_share, "silence_opening": own.opening}
        if own.frames == 0:
            absent |= dict.fromkeys(("open_in_silence", "silence_opening"), "no pause of 0.32 s in the speech")
        if "reference" in openings:
            found["reference_open_in_silence"] = mouths.in_silence(openings["reference"], silent).open_share
    if "source" in openings:
        found["leakage"] = mouths.leakage(openings["video"], openings["source"], levels)
    else:
        absent["leakage"] = "no --source"
    return found


def _sync(
    video: Path,
    boxes: Sequence[sync_tracks.Box | None],
    samples: NDArray[np.float32],
    tools: Tools,
    absent: dict[str, str],
) -> syncnet.SyncScore | None:
    """Return SyncNet's score of the clip's tracks together, or None with the reason noted."""
    if tools.syncnet is None or len(samples) == 0:
        return None
    sound = np.round(np.clip(samples * 32768, -32768, 32767))
    found = sync_tracks.tracks(boxes)
    try:
        if not found:
            raise InputError(f"no face is seen for {sync_tracks.SHORTEST_FRAMES} frames on end")
        scores = [
            syncnet.score(
                tools.syncnet,
                sync_tracks.crops(video, track),
                sound[track.first * syncnet.SAMPLES_PER_FRAME :][: len(track.squares) * syncnet.SAMPLES_PER_FRAME],
            )
            for track in found
        ]
    except LipstreamError as error:
        absent |= dict.fromkeys(("sync_c", "sync_d", "sync_offset"), error.message)
        return None
    return syncnet.mean_score(scores)
