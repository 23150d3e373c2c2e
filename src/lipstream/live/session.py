"""A live session: speech is pushed in, frames come out, paced by a clock.

One thread generates windows as the schedule plans them, another one reads the clip; the caller's takes the frames. What
goes wrong in a thread is raised where the frames are taken.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lipstream.errors import SettingsError
from lipstream.live.avatar import Avatar
from lipstream.live.clip import EndlessClip
from lipstream.live.frames import LiveFrame, LiveSettings
from lipstream.live.mouths import LiveFeatures, Mouths
from lipstream.live.schedule import AHEAD, Schedule, Slot, Turn, Wait, Window
from lipstream.live.speech import Segment, mono_of
from lipstream.pipeline.records import Components
from lipstream.pipeline.threads import Stopped, ThreadGroup
from lipstream.runtime.allocator import give_back_freed_memory

_POLL_S = 0.005  # where it is not known when the next frame comes


class PushSession:
    """See LiveSession. To be closed before its threads are."""

    def __init__(
        self,
        components: Components,
        avatar: Avatar,
        settings: LiveSettings,
        threads: ThreadGroup,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to read the clip and to measure. Raises SettingsError."""
        if settings.sync.silence == "closed":
            raise SettingsError(
                "silence = 'closed' takes the whole recording",
                fix="leave it out, and end segments where pauses begin",
                setting="silence",
            )
        num_frames = components.model.config.num_frames
        self._avatar, self._settings, self._clock = avatar, settings, clock
        self._threads, self._changed = threads, threads.condition()
        self._schedule = Schedule(avatar.frame_rate, num_frames, settings.realtime, ready_s=math.inf)
        self._features = LiveFeatures(components, avatar, settings.sync)
        self._mouths = Mouths(components, avatar, settings.sync, threads)
        self._clip = EndlessClip(avatar, threads, AHEAD + 2 * num_frames)
        self._num_frames = num_frames
        self._segment: Segment | None = None  # that is being pushed
        self._features_of: tuple[Segment, int] | None = None  # the segment that is being generated, samples taken of it
        self.n_generated = 0
        """Faces that were generated for speech: fewer than its frames where they were thinned."""
        self._epoch = 0  # rises with each interruption
        self._sample_rate_hz = 16000
        self._face: Tensor | None = None  # the last one that was given out
        self._since = 0  # frames since then whose mouth was closed, or closing
        self._error: BaseException | None = None
        self._is_closed = False
        self.on_close: Callable[[], None] = threads.close
        threads.start(self._generate, "live")

    def push_audio(self, samples: NDArray[Any], sample_rate_hz: int) -> None:
        """See LiveSession."""
        mono = mono_of(samples)
        with self._changed:
            if self._is_closed:
                raise SettingsError("this session is closed", fix="begin another one")
            if not len(mono):
                return
            if self._segment is None:
                self._segment = Segment(sample_rate_hz, self._avatar.frame_rate, self._settings.look_ahead_s)
                self._schedule.add(self._segment)
            elif self._segment.sample_rate_hz != sample_rate_hz:
                raise SettingsError(
                    f"sample_rate_hz = {sample_rate_hz}: the segment began with {self._segment.sample_rate_hz}",
                    fix="end the segment first",
                    setting="sample_rate_hz",
                )
            self._segment.add(mono, self._clock())
            self._changed.notify_all()

    def end_segment(self) -> None:
        """See LiveSession."""
        with self._changed:
            if self._segment is not None:
                self._segment.end(self._clock())
                self._segment = None
            self._changed.notify_all()

    def interrupt(self) -> None:
        """See LiveSession."""
        with self._changed:
            self._epoch += 1
            self._segment = None
            self._schedule.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """See LiveSession."""
        self.end()
        self.on_close()

    def end(self) -> None:
        """End the iteration; the threads are the caller's to end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def __enter__(self) -> PushSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[LiveFrame]:
        while True:
            with self._changed:
                while isinstance(turn := self._next(), Wait):
                    self._changed.wait(None if turn.until_s is None else self._delay_s(turn))
            if turn is None:
                return
            yield self._frame(turn)

    async def __aiter__(self) -> AsyncIterator[LiveFrame]:
        while True:
            await asyncio.sleep(0)  # others have their turn where frames are overdue, too
            with self._changed:
                turn = self._next()
            if turn is None:
                return
            if isinstance(turn, Turn):
                yield self._frame(turn)
            else:
                await asyncio.sleep(self._delay_s(turn))

    def _delay_s(self, wait: Wait) -> float:
        return _POLL_S if wait.until_s is None else max(0.0, wait.until_s - self._clock())

    def _next(self) -> Turn | Wait | None:
        """Return the frame whose turn it is, how long to wait, or None at the end. Raises what went wrong.

        To be called with the lock held.
        """
        if self._is_closed:
            return None
        if self._error is not None:
            raise self._error
        turn = self._schedule.take(self._clock())
        if isinstance(turn, Turn):
            self._changed.notify_all()
        return turn

    def _frame(self, turn: Turn) -> LiveFrame:
        (frame,) = self._clip.frames(turn.index, turn.index + 1)
        slot, rate = turn.slot, self._avatar.frame_rate
        if slot is None:
            image = self._mouths.ending(frame, self._face, self._since)
            self._since += 1
            begin, end = (round(i * self._sample_rate_hz / rate) for i in (turn.index, turn.index + 1))
            samples, ends = np.zeros(end - begin, np.float32), False
        else:
            with self._changed:
                samples = slot.segment.samples(slot.frame)
                slot.segment.forget(slot.frame + 1)
                ends = slot.is_last
            self._sample_rate_hz = slot.segment.sample_rate_hz
            if slot.picture is not None:
                image, self._face, self._since = slot.picture.image, slot.picture.face, 0
            elif self._face is not None and self._since == 0:  # there was no time for this one
                image = self._mouths.held(frame, self._face)
            else:
                image = self._mouths.ending(frame, self._face, self._since)
                self._since += 1
        self._clip.release(turn.index + 1)
        return LiveFrame(
            picture=image,
            time_s=float(turn.index / rate),
            samples=samples,
            sample_rate_hz=self._sample_rate_hz,
            is_speech=slot is not None,
            ends_segment=ends,
        )

    def _generate(self) -> None:
        """Generate what the schedule plans, until the threads are stopped."""
        try:
            self._measure()
            while True:
                with self._changed:
                    self._threads.check()
                    now_s, epoch = self._clock(), self._epoch
                    window = self._schedule.plan(now_s)
                    if isinstance(window, Wait):
                        self._changed.wait(None if window.until_s is None else max(0.001, window.until_s - now_s))
                        continue
                    self._take_speech(window.slots[0])
                begun_s = self._clock()
                pictures = self._pictures(window)
                with self._changed:
                    if epoch == self._epoch:
                        self._schedule.done(window, pictures, self._clock() - begun_s)
                    self.n_generated += window.faces
                    is_over = window.slots[-1].is_last or epoch != self._epoch
                    self._changed.notify_all()
                if is_over:
                    give_back_freed_memory()  # now there is time
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001  (raised again where the frames are taken)
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _measure(self) -> None:
        frames = self._clip.frames(0, self._num_frames)
        self._features.add(np.zeros(2 * 16000, np.float32), is_whole=True)
        cost = self._mouths.measured(frames, self._features.features(0, self._num_frames), self._clock)
        with self._changed:
            self._schedule.cost, self._schedule.ready_s = cost, self._clock()

    def _take_speech(self, slot: Slot) -> None:
        """Take what has come of a segment since its last window."""
        if self._features_of is None or self._features_of[0] is not slot.segment:
            self._features_of = (slot.segment, 0)
            self._features.begin()
        segment, n_taken = self._features_of
        samples = segment.model_samples
        self._features.add(samples.part(n_taken, samples.stop), is_whole=segment.is_ended)
        self._features_of = (segment, samples.stop)
        samples.forget(samples.stop)

    def _pictures(self, window: Window) -> list[Any]:
        first, last = window.slots[0], window.slots[-1]
        frames = self._clip.frames(first.index, last.index + 1)
        audio = self._features.features(first.frame, len(window.slots))
        spoken = self._mouths.generate(frames, audio, window.faces)
        if not self._settings.realtime:
            return list(spoken)
        pairs = zip(window.slots, frames, spoken, strict=True)
        return [self._mouths.beginning(frame, one, slot.place) for slot, frame, one in pairs]
