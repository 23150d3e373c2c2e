"""Compare videos side by side: a labelled video with sound, a JSON file of metrics and a contact sheet.

Frames are resampled to 25 per second, as in a run, and compared at equal times, one time at a time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import InputError, SettingsError
from lipstream.evaluate.lip_metrics import MouthFinder
from lipstream.evaluate.quality import Compared, Meter, Quality
from lipstream.face.align import crop_face, face_size
from lipstream.face.quiet import import_problem
from lipstream.face.registry import Detector, make_detector
from lipstream.face.tracking import FaceTrack
from lipstream.media.atomic import check_beside, write_whole
from lipstream.media.audio import SpeechInfo, probe_speech
from lipstream.media.images import resized, sheet, write_png
from lipstream.media.output_file import check_output
from lipstream.media.reader import VideoInfo, VideoSource, probe, read_frames
from lipstream.media.writer import VideoWriter
from lipstream.results import Progress, StageTime
from lipstream.settings import FRAME_RATE_HZ
from lipstream.version import __version__

Image = NDArray[np.uint8]

LABELS = ("original", "lip-synced", "optimised")

# Differences up to this (of 255) are compression artefacts, not generated pixels.
_COMPRESSION_TOLERANCE = 8
# Limit of most H.264 hardware decoders; wider output is downscaled.
_MAX_WIDTH_PX = 4096
_SHEET_COLUMNS = 8
_THUMBNAIL_PX = 256


@dataclass(frozen=True)
class Side:
    """One input video. frames: its length at 25 frames per second."""

    label: str
    path: Path
    frames: int


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    quality: metrics of the video labelled `measured` (the last) with `against` (the one before) as the reference, over
    the pixels in which either differs from `untouched` (the first). sound: the file whose sound the output carries,
    None if no input has any.
    """

    output: Path
    sheet: Path
    videos: tuple[Side, ...]
    frames: int
    duration_s: float
    sound: Path | None
    measured: str
    against: str
    untouched: str
    quality: Quality

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a JSON object; psnr_db is null if infinite."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        if self.quality.psnr_db == math.inf:
            values["quality"]["psnr_db"] = None
        return values


def compare_videos(
    reference: Path, video: Path, original: Path | None = None, *, finder: MouthFinder | None = None
) -> Quality:
    """Measure `video` against `reference`, up to the end of the shortest; mouth metrics only with a finder.

    original: the video that both were generated from; None if that is the reference itself. Only generated pixels
    count: those which differ from the original by more than compression artefacts. Raises InputError for a video that
    cannot be read or has a different size.
    """
    meter = Meter(finder)
    for images in _aligned_frames([original or reference, reference, video]):
        meter.add(_compared(images))
    return meter.value()


def compare(
    videos: Sequence[Path],
    output: Path,
    labels: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Write two or three videos side by side to `output`, the metrics to its .json and a contact sheet to its .png.

    videos: the original, then one or two generated from it. labels: one per video, LABELS if None. Raises InputError,
    OutputError, SettingsError and ModelError.
    """
    labels = labels or LABELS[: len(videos)]
    if len(labels) != len(videos):
        raise SettingsError(
            f"labels = {','.join(labels)!r}: got {len(labels)} labels for {len(videos)} videos",
            fix="give one label per video, separated by commas",
            setting="labels",
        )
    side_files = output.with_suffix(".json"), output.with_suffix(".png")
    check_output(output, inputs=videos, overwrite=overwrite)
    for path in side_files:
        check_beside(path, inputs=videos, overwrite=overwrite)
    _common_size(videos)
    sides = [Side(label, path, _count(path)) for label, path in zip(labels, videos, strict=True)]
    speech = _speech([*videos[1:], videos[0]])
    detector = make_detector("mediapipe", "cpu")
    with closing(detector), closing(MouthFinder(detector)) as finder:
        quality, picture = _write_video(sides, output, speech, finder, overwrite, on_progress)
    comparison = Comparison(
        output=output,
        sheet=side_files[1],
        videos=tuple(sides),
        frames=quality.frames,
        duration_s=quality.frames / FRAME_RATE_HZ,
        sound=speech.path if speech else None,
        measured=labels[-1],
        against=labels[-2],
        untouched=labels[0],
        quality=quality,
    )
    write_png(side_files[1], picture)
    write_whole(side_files[0], (json.dumps(comparison.to_dict(), indent=1) + "\n").encode())
    return comparison


def _write_video(
    sides: Sequence[Side],
    output: Path,
    speech: SpeechInfo | None,
    finder: MouthFinder,
    overwrite: bool,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[Quality, Image]:
    """Read all videos once: write them side by side, measure the last one and collect the contact sheet."""
    paths, labels = [side.path for side in sides], [side.label for side in sides]
    info, (width, height) = probe(paths[0]), _common_size(paths)
    n_frames = min(side.frames for side in sides)
    shown_height = min(height, _MAX_WIDTH_PX * height // (len(sides) * width))
    shown_width = max(round(width * shown_height / height), 1)
    band = np.concatenate(_bands(labels, shown_width, 2 * max(shown_height // 24, 12)), axis=1)
    sheet_frames = set(np.linspace(0, n_frames - 1, _SHEET_COLUMNS).round().astype(int).tolist())
    columns: list[list[Image]] = []
    meter, begun_s = Meter(finder), time.perf_counter()
    with VideoWriter(
        output,
        width=band.shape[1],
        height=len(band) + shown_height,
        color=info.color,
        layout=info.layout,
        speech=speech,
        n_frames=n_frames,
        sample_aspect_ratio=info.sample_aspect_ratio,
        overwrite=overwrite,
        metadata={
            "comment": f"Made with AI: compares videos with generated lip movements, by lipstream {__version__}."
        },
    ) as writer:
        for index, images in enumerate(_aligned_frames(paths)):
            meter.add(_compared(images))
            shown = images if shown_height == height else [resized(i, shown_height, shown_width) for i in images]
            writer.write(np.concatenate([band, np.concatenate(shown, axis=1)]))
            if index in sheet_frames:
                columns.append(_thumbnails(images, finder.detector))
            if on_progress is not None:
                stage = StageTime("compare", time.perf_counter() - begun_s, index + 1)
                on_progress(Progress(index + 1, n_frames, (stage,)))
    names = _bands(labels, len(columns) * columns[0][0].shape[1], _THUMBNAIL_PX // 8)
    rows = [row for name, pictures in zip(names, zip(*columns, strict=True), strict=True) for row in ([name], pictures)]
    return meter.value(), sheet(rows)


def _compared(images: Sequence[Image]) -> Compared:
    """Pair the last image with the one before it, given the first as the original. images: two or three, (h, w, 3)."""
    return Compared.generated(images[-2], images[-1], images[0], _COMPRESSION_TOLERANCE)


def _aligned_frames(paths: Sequence[Path]) -> Iterator[list[Image]]:
    """Yield one frame (h, w, 3) of each video per time step until the shortest ends. Raises InputError."""
    width, height = _common_size(paths)
    for frames in zip(*(read_frames(path) for path in paths), strict=False):
        yield [frame.image[:height, :width] for frame in frames]


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Return the common (width, height), ignoring a column or row that was padded to make an odd size even."""
    infos = [probe(path) for path in paths]
    for info in infos:
        if _even(info) != _even(infos[0]):
            raise InputError(
                f"size {info.width}x{info.height} differs from {infos[0].width}x{infos[0].height} of {paths[0]}",
                file=info.path,
                fix="scale the videos to one size",
            )
    return min(info.width for info in infos), min(info.height for info in infos)


def _even(info: VideoInfo) -> tuple[int, int]:
    return info.width + info.width % 2, info.height + info.height % 2


def _count(path: Path) -> int:
    with VideoSource(path) as source:
        return sum(1 for _ in source.at_rate(Fraction(FRAME_RATE_HZ)))


def _speech(paths: Sequence[Path]) -> SpeechInfo | None:
    """Return the sound of the first video that has any."""
    for path in paths:
        try:
            return probe_speech(path)
        except InputError:  # sound is optional
            continue
    return None


def _bands(labels: Sequence[str], width: int, height: int) -> list[Image]:
    """Draw each label on a dark band of the given size (height, width, 3), in Pillow's default font."""
    try:
        from PIL import Image as Pictures
        from PIL import ImageDraw, ImageFont
    except ImportError as error:
        problem = import_problem("lipstream[measure]", error)
        raise SettingsError(f"labels: {problem.message}", fix=problem.fix) from error
    font = ImageFont.load_default(size=height * 0.6)
    bands = []
    for label in labels:
        picture = Pictures.new("RGB", (width, height), (24, 24, 24))
        ImageDraw.Draw(picture).text((width / 2, height / 2), label, fill=(255, 255, 255), font=font, anchor="mm")
        bands.append(np.array(picture, np.uint8))
    return bands


def _thumbnails(images: Sequence[Image], detector: Detector) -> list[Image]:
    """Crop all images to the face in the first one, or to their centre if it shows none."""
    face_width, face_height = face_size(_THUMBNAIL_PX)
    width = round(_THUMBNAIL_PX * face_width / face_height)
    face = detector.detect(images[0])
    matrix = None if face is None else FaceTrack(_THUMBNAIL_PX).update(0, False, face.landmarks)
    if matrix is not None:
        crops = [crop_face(image, matrix, _THUMBNAIL_PX).permute(1, 2, 0).numpy() for image in images]
    else:
        across = min(images[0].shape[1], max(images[0].shape[0] * width // _THUMBNAIL_PX, 1))
        left = (images[0].shape[1] - across) // 2
        crops = [image[:, left : left + across] for image in images]
    return [resized(crop, _THUMBNAIL_PX, width) for crop in crops]
