"""What LipSync does with prepared clips: make them, and let them speak."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from lipstream.live.avatar import Avatar
from lipstream.live.frames import LiveSession, LiveSettings
from lipstream.live.prepare import prepare
from lipstream.live.session import PushSession
from lipstream.media.atomic import check_beside
from lipstream.media.reader import VideoInfo, probe
from lipstream.pipeline.analyse import rate_of
from lipstream.pipeline.caller import Watch
from lipstream.pipeline.clocks import Clocks
from lipstream.pipeline.segment_worker import SegmentWorker
from lipstream.pipeline.threads import ThreadGroup
from lipstream.results import Progress
from lipstream.runtime.cudnn import tuned_convolutions
from lipstream.runtime.memory import memory_errors
from lipstream.settings import SyncSettings


class LiveWorker(SegmentWorker):
    """Prepares clips and lends the networks to live sessions."""

    def prepare_avatar(
        self,
        video: str | Path | VideoInfo,
        output: str | Path,
        settings: SyncSettings | None = None,
        *,
        overwrite: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Avatar:
        """Write all of a video that does not depend on the speech to one file, whole or not at all, and open it.

        Such a clip takes the place of the video in `__call__`, and it is what `live` needs. settings: those of
        `lipstream.live.avatar_info.DECIDED` belong to it from then on. Raises InputError, NoFaceError, OutputError,
        SettingsError, ModelError, OutOfMemoryError, Cancelled.
        """
        settings, clocks, path = settings or SyncSettings(), Clocks.start(), Path(output)
        with self._turn(cancel, None) as components, memory_errors(components.device):
            info = video if isinstance(video, VideoInfo) else probe(video)
            check_beside(path, inputs=[info.path], overwrite=overwrite)
            rate = rate_of(components, info, settings)
            n_frames = round(rate * Fraction(info.duration_s or 0))
            watch = Watch(clocks, 2 * n_frames, on_progress, cancel)  # analysed, then generated
            watch.report()
            self._in_threads(
                components,
                watch,
                lambda threads: prepare(components, info, path, settings, clocks, threads, overwrite=overwrite),
            )
            watch.report()
        return Avatar.open(path)

    def live(self, avatar: Avatar | str | Path, settings: LiveSettings | None = None) -> LiveSession:
        """Begin a live session with a prepared clip: speech is pushed in while it is spoken, frames come out.

        Other calls wait until it is closed; for several sessions at once make several LipSync of one `model`. Raises
        InputError, ModelError, SettingsError.
        """
        opened = avatar if isinstance(avatar, Avatar) else Avatar.open(avatar)
        turn = self._add(self._session(opened, settings or LiveSettings()))
        session = next(turn)
        session.on_close = turn.close
        return session

    def _session(self, avatar: Avatar, settings: LiveSettings) -> Generator[PushSession, None, None]:
        """Yield a session, with the turn held until this generator is closed."""
        with (
            self._turn(None, None) as components,
            memory_errors(components.device),
            tuned_convolutions(components.device),
            ThreadGroup() as threads,
        ):
            avatar.check(components)
            self._threads = threads
            settings = replace(settings, sync=avatar.settings(settings.sync))
            session = PushSession(components, avatar, settings, threads)
            self._paused_in = threading.get_ident()
            try:
                yield session
            finally:
                session.end()
