"""What is measured in a clip frame by frame: looked at in threads, accumulated in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lipstream.errors import InputError, NoFaceError
from lipstream.evaluate.lip_metrics import MouthFinder, inner_lips_distance
from lipstream.evaluate.mouth import mouth_opening
from lipstream.evaluate.openings import correlation
from lipstream.evaluate.perceptual import Likeness
from lipstream.evaluate.quality import Appearance, Compared, Psnr, Ssim, similarity_near
from lipstream.evaluate.region import face_regions
from lipstream.evaluate.sync_tracks import Box
from lipstream.face.detector import Detector, Face

if TYPE_CHECKING:
    from lipstream.evaluate.score import Tools

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Matrix = NDArray[np.float32]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Pictures:
    """One frame of each video (h, w, 3)."""

    video: Image
    reference: Image | None
    source: Image | None

    def given(self) -> dict[str, Image]:
        """Return those that there are, by name."""
        named = {"video": self.video, "reference": self.reference, "source": self.source}
        return {name: image for name, image in named.items() if image is not None}


@dataclass(frozen=True)
class _Regions:
    """The repainted region and the face as masks (h, w), and the likeness to the reference there, if there is one."""

    repainted: Mask
    face: Mask
    similarity: tuple[Tensor, tuple[slice, slice]] | None


@dataclass(frozen=True)
class Seen:
    """What one frame shows. points: the mesh (468, 2) of each video, None where it shows no face."""

    pictures: Pictures
    box: Box | None
    affine_matrix: Matrix | None
    points: Mapping[str, Points | None]
    regions: _Regions | None


def detect(detector: Detector, pictures: Pictures) -> tuple[Pictures, Face | None]:
    """Find the face: in the reference, else in the source, else in the video itself.

    So systems that are compared with one another are measured in the same place.
    """
    images = pictures.given()
    anchor = next(images[name] for name in ("reference", "source", "video") if name in images)
    return pictures, detector.detect(anchor)


def look(finder: MouthFinder, found: tuple[Pictures, Face | None, Matrix | None]) -> Seen:
    """Find the mouths, and compare the faces."""
    pictures, face, affine_matrix = found
    images = pictures.given()
    if face is None or affine_matrix is None:
        return Seen(pictures, None, None, dict.fromkeys(images), None)
    points = {name: finder.points(image, affine_matrix) for name, image in images.items()}
    repainted, whole = face_regions(affine_matrix, *pictures.video.shape[:2])
    similarity = None
    if pictures.reference is not None and whole.any():
        similarity = similarity_near(pictures.reference, pictures.video, whole)
    return Seen(pictures, face.box, affine_matrix, points, _Regions(repainted, whole, similarity))


class ClipMeter:
    """Accumulates the measures of one clip, frame by frame, in order.

    boxes: the face's in each frame. frames_without_face: frames in which the video shows no mouth.
    """

    def __init__(self, tools: Tools) -> None:
        self.frames = self.frames_without_face = 0
        self.boxes: list[Box | None] = []
        self._series: dict[str, list[float]] = {}
        self._distances: list[float] = []
        self._own, self._reference = Appearance(), Appearance()
        self._repainted, self._face = (Psnr(), Ssim()), (Psnr(), Ssim())
        self._likeness = Likeness(tools.networks, tools.fid, tools.fvd)

    def add(self, seen: Seen) -> None:
        """Add one frame."""
        self.frames += 1
        self.boxes.append(seen.box)
        for name, points in seen.points.items():
            self._series.setdefault(name, []).append(np.nan if points is None else mouth_opening(points))
        one, other = seen.points.get("reference"), seen.points["video"]
        self.frames_without_face += other is None
        if one is not None and other is not None:
            self._distances.append(inner_lips_distance(one, other))
        if seen.regions is not None and seen.affine_matrix is not None:
            self._add_appearance(seen.pictures, seen.regions)
            like = seen.pictures.source if seen.pictures.reference is None else seen.pictures.reference
            if like is not None:
                self._likeness.add(like, seen.pictures.video, seen.affine_matrix)
        else:
            self._likeness.interrupt()

    def _add_appearance(self, pictures: Pictures, regions: _Regions) -> None:
        self._own.add(pictures.video, regions.repainted)
        if pictures.reference is None:
            return
        self._reference.add(pictures.reference, regions.repainted)
        for (psnr, ssim), counts in ((self._repainted, regions.repainted), (self._face, regions.face)):
            psnr.add(Compared(pictures.reference, pictures.video, pictures.reference, counts))
            if regions.similarity is not None:
                similarity, box = regions.similarity
                ssim.add_map(similarity, counts[box])

    def check(self, video: Path) -> None:
        """Raise InputError without a frame, NoFaceError without a mouth."""
        if self.frames == 0:
            raise InputError("not one frame in common with its reference or source", file=video)
        if self.frames_without_face == self.frames:
            raise NoFaceError(f"no usable face in its {self.frames} frames", file=video, fix="give another video")

    def openings(self) -> dict[str, NDArray[np.float64]]:
        """Return the mouth's opening in each frame, by video; NaN without a mouth."""
        return {name: np.array(values) for name, values in self._series.items()}

    def measures(self) -> dict[str, float | None]:
        """Return the measures by name."""
        (psnr, ssim), (face_psnr, face_ssim) = self._repainted, self._face
        openings = self.openings()
        found: dict[str, float | None] = {"frames": self.frames, "frames_without_face": self.frames_without_face}
        found |= self._own.values()
        found |= self._likeness.means()
        if "reference" not in openings:
            return found
        found |= {f"reference_{name}": value for name, value in self._reference.values().items()}
        return found | {
            "psnr_db": psnr.value(),
            "ssim": ssim.value(),
            "face_psnr_db": face_psnr.value(),
            "face_ssim": face_ssim.value(),
            "landmark_distance": float(np.mean(self._distances)) if self._distances else None,
            "opening_correlation": correlation(openings["video"], openings["reference"]),
        }
