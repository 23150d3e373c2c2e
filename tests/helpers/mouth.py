"""How far a mouth is open in each frame of a video, and how loud the speech is meanwhile."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipstream.evaluate.mouth import FaceMesh, mouth_opening
from lipstream.face.align import crop_face
from lipstream.face.registry import make_detector
from lipstream.face.tracking import FaceTrack
from lipstream.media.audio import read_mono
from lipstream.media.reader import read_frames

CROP_PX = 256
SAMPLES_PER_FRAME = 16000 // 25


def mouth_openings(video: Path, original: Path) -> NDArray[np.float64]:
    """Return the distance of the inner lips over the height of the face, (n,); NaN where no face is found.

    The crops are cut where the face is in the same frame of `original`, so that both are measured alike.
    """
    track, openings = FaceTrack(CROP_PX), []
    with closing(make_detector("mediapipe", "cpu")) as detector, closing(FaceMesh()) as mesh:
        for frame, source in zip(read_frames(video), read_frames(original), strict=True):
            face = detector.detect(source.image)
            matrix = track.update(frame.index, False, None if face is None else face.landmarks)
            points = None
            if matrix is not None:
                points = mesh.points(crop_face(frame.image, matrix, CROP_PX).permute(1, 2, 0).numpy())
            openings.append(np.nan if points is None else mouth_opening(points))
    return np.array(openings)


def loudness(speech: Path, n_frames: int) -> NDArray[np.float64]:
    """Return the root mean square of the speech at each frame of 25 fps, smoothed over three frames: (n_frames,)."""
    samples = np.concatenate(list(read_mono(speech))).astype(np.float64)
    samples = np.pad(samples, (0, max(0, n_frames * SAMPLES_PER_FRAME - len(samples))))
    frames = samples[: n_frames * SAMPLES_PER_FRAME].reshape(n_frames, SAMPLES_PER_FRAME)
    root = np.sqrt(np.square(frames).mean(1))
    return np.convolve(np.pad(root, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")
