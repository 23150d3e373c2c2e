"""What a run is made from: a video, or a prepared clip in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lipstream.errors import SettingsError
from lipstream.live.avatar import Avatar
from lipstream.live.avatar_info import is_avatar
from lipstream.media.reader import VideoInfo
from lipstream.pipeline.analyse import FaceTable
from lipstream.pipeline.records import Components
from lipstream.settings import SyncSettings

Video = str | Path | VideoInfo | Avatar


@dataclass(frozen=True)
class Source:
    """A video, the settings of a run over it, its table of faces and what was prepared, where they are known."""

    video: str | Path | VideoInfo
    settings: SyncSettings
    faces: FaceTable | str | Path | None
    avatar: Avatar | None = None


@contextmanager
def opened(
    video: Video, settings: SyncSettings, faces: FaceTable | str | Path | None, components: Components
) -> Iterator[Source]:
    """Yield what to run over; the video of a prepared clip is there as a file meanwhile.

    Raises InputError, ModelError, SettingsError.
    """
    if isinstance(video, VideoInfo) or not (isinstance(video, Avatar) or is_avatar(video)):
        yield Source(video, settings, faces)
        return
    avatar = video if isinstance(video, Avatar) else Avatar.open(video)
    if faces is not None:
        raise SettingsError("a prepared clip has its own table of faces", file=avatar.path, fix="leave --faces out")
    avatar.check(components)
    settings = avatar.settings(settings)
    with avatar.files() as (path, table):
        yield Source(path, settings, table, avatar)
