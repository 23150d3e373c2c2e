"""Known faces: what `track` makes of a table of faces, for every frame of an output, before any of it is rendered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from lipstream.errors import InputError, SettingsError
from lipstream.media.atomic import write_whole
from lipstream.media.picture import RgbPicture
from lipstream.media.reader import Frame
from lipstream.media.segment import source_frame
from lipstream.pipeline.analyse import FaceTable
from lipstream.pipeline.first_face import no_face_in
from lipstream.pipeline.records import Clip, KnownFaces
from lipstream.pipeline.track import Seen, tracked

_NO_PICTURE = RgbPicture(np.zeros((0, 0, 3), np.uint8))


def known_faces(table: FaceTable, clip: Clip, resolution: int, *, is_given: bool) -> KnownFaces:
    """Return the faces of a clip's frames, as following them in a run from end to end gives.

    is_given: see `track.tracked`. Raises NoFaceError, and SettingsError for a table that was made with others.
    """
    _check(table, clip)
    if not table.shows_face(clip.n_frames).any():
        raise no_face_in(clip.name, min(clip.n_frames, len(table)))
    n_frames = min(clip.n_frames, len(table)) if clip.settings.loop == "trim" else clip.n_frames
    known = KnownFaces(np.full((n_frames, 2, 3), np.nan, np.float32), np.zeros(n_frames, np.bool_), np.ones(n_frames))
    for one in tracked(_seen(table, n_frames, clip), resolution, clip, is_given=is_given):
        index = one.frame.index
        known.begins[index], known.weights[index] = one.begins, one.weight
        if one.affine_matrix is not None:
            known.affine_matrices[index] = one.affine_matrix
    return known


def save_known(known: KnownFaces, path: Path) -> None:
    """Write them, whole or not at all. Raises OutputError."""
    write_whole(path, save({name: np.ascontiguousarray(column) for name, column in vars(known).items()}))


def load_known(path: Path) -> KnownFaces:
    """Return what `save_known` wrote."""
    return KnownFaces(**load_file(path))


def check_loop(settings_loop: str) -> None:
    """Raise SettingsError for a way to lengthen a video whose frames cannot be read by themselves."""
    if settings_loop in ("loop", "remap"):
        raise SettingsError(
            f"loop = {settings_loop!r}: does not go with segments or a table of faces",
            fix="use --loop pingpong, hold or trim, or leave out --work, --faces and further devices",
            setting="loop",
        )


def _seen(table: FaceTable, n_frames: int, clip: Clip) -> Iterator[Seen]:
    n_source = len(table)
    last = 0
    for index in range(n_frames):
        at = source_frame(index, n_source, clip.settings.loop)
        is_repeat = index >= n_source
        candidates = () if is_repeat else table.candidates(index)
        # Two pictures differ as much backwards.
        difference = 0.0 if at == last else table.difference_before(max(at, last))
        yield Seen(Frame(index, at, is_repeat, _NO_PICTURE), candidates, None, difference)
        last = at


def _check(table: FaceTable, clip: Clip) -> None:
    check_loop(clip.settings.loop)
    follows = clip.settings.follows(clip.model_departs)
    if follows != (table.people is not None):
        with_people, other = ("without", "off") if follows else ("with", "people")
        raise SettingsError(
            f"the table of faces was made {with_people} what following people needs",
            fix=f"use --tracking {other}, or make the table again with the same --model, --preset and --tracking",
            setting="tracking",
        )
    if table.frame_rate != clip.frame_rate:
        raise SettingsError(
            f"the table of faces was made at {table.frame_rate} frames a second, this run has {clip.frame_rate}",
            fix="use the same --frame-rate, or make the table again",
            setting="frame_rate",
        )
    if not len(table):
        raise InputError("the table of faces is empty", file=clip.name, fix="make it again")
