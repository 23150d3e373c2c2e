"""What the person looks like whom `--face X,Y@FRAME` names, before the frames in front of that one are worked on."""

from __future__ import annotations

import itertools
from fractions import Fraction

from lipstream.errors import NoFaceError
from lipstream.face.detector import Detector
from lipstream.face.keyframes import faces_in
from lipstream.face.people import FaceRule, Look, candidates_of
from lipstream.media.reader import VideoInfo, read_frames
from lipstream.settings import SyncSettings


def named_person(detector: Detector, video: VideoInfo, settings: SyncSettings, frame_rate: Fraction) -> Look | None:
    """Return what the face at a point in a frame looks like; None where the settings name no frame.

    Raises NoFaceError where there is no such frame, or no face there.
    """
    rule = FaceRule.parse(settings.face or "largest")
    if rule.frame is None:
        return None
    frames = read_frames(video.path, frame_rate, deinterlace=settings.deinterlace)
    for frame in itertools.islice(frames, rule.frame, rule.frame + 1):
        chosen = rule.choose(candidates_of(frame.image, faces_in(detector, frame.image, finds_all=True)))
        if chosen is not None:
            return chosen.look
        raise NoFaceError(f"no face at {settings.face}", file=video.path, fix="name a point on a face, in px")
    raise NoFaceError(f"it has no frame {rule.frame}", file=video.path, fix="name an earlier frame, the first being 0")
