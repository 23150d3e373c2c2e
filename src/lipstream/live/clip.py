"""The pictures of a prepared clip, to and fro without end, read some way ahead in a thread of its own."""

from __future__ import annotations

from collections import deque

from lipstream.live.avatar import Avatar
from lipstream.media.loop import FrameIndex
from lipstream.media.reader import Frame
from lipstream.media.segment import read_segment, source_frame
from lipstream.pipeline.threads import Stopped, ThreadGroup


def place_of(index: int, loop: tuple[int, int]) -> int:
    """Return which frame of the clip frame `index` of a session shows."""
    first, stop = loop
    return first + source_frame(index, stop - first, "pingpong")


class EndlessClip:
    """Frame i of a session shows frame `place_of(i)` of the clip. Frames are numbered as those of the session."""

    def __init__(self, avatar: Avatar, threads: ThreadGroup, ahead: int) -> None:
        """Begin to read. ahead: how many frames are held, counted from the last one that was released."""
        self._avatar, self._threads, self._ahead = avatar, threads, ahead
        self._frames: deque[Frame] = deque()
        self._changed = threads.condition()
        self._error: BaseException | None = None
        threads.start(self._read, "clip")

    def frames(self, start: int, stop: int) -> list[Frame]:
        """Return frames once they are read; their pictures are not to be changed.

        In place of one that has been released meanwhile, and is not needed any more, comes the first that has not.
        """
        with self._changed:
            self._threads.wait(self._changed, lambda: self._error is not None or self._stop() >= stop)
            if self._error is not None:
                raise self._error
            first = self._frames[0].index
            return [self._frames[max(0, index - first)] for index in range(start, stop)]

    def release(self, before: int) -> None:
        """Let go of the frames before one."""
        with self._changed:
            while self._frames and self._frames[0].index < before:
                self._frames.popleft()
            self._changed.notify_all()

    def _stop(self) -> int:
        return self._frames[-1].index + 1 if self._frames else 0

    def _read(self) -> None:
        try:
            with self._avatar.files() as (path, table):
                first, stop = self._avatar.info.loop
                part = FrameIndex()
                for name in vars(part):
                    setattr(part, name, getattr(table.frames, name)[first:stop])
                index = 0
                while True:
                    for frame in read_segment(path, part, 0, 2 * len(part), "pingpong", deinterlace=table.deinterlace):
                        with self._changed:
                            self._threads.wait(self._changed, lambda: len(self._frames) < self._ahead)
                            source = first + frame.source_index
                            self._frames.append(Frame(index, source, index >= len(part), frame.picture))
                            self._changed.notify_all()
                        index += 1
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001  (raised again where frames are taken)
            with self._changed:
                self._error = error
                self._changed.notify_all()
