"""What is generated when, and what each frame shows: the rules of a live session, without threads and without a clock.

The frames of the output are numbered, and frame i is due at a time of its own. The frames of the speech are bound to
them window by window, when a window is planned: from then on its sound is played at its place, whatever becomes of the
pictures. A window takes as many frames as have their sound and can be generated in time; when time is short it is
thinned (fewer faces than frames, each shown until the next one), and when there is none the last face stays.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from lipstream.live.speech import Segment

LATEST_S = 0.8
"""A frame is shown at most so long after the last sample came that generating it needs, or when its turn comes, s."""

AHEAD = 32
"""Frames that may be generated before they are shown."""

_FIRST_FRAMES = 4  # that a first window waits for
_MARGIN_S = 0.02
_CUSHION_FRAMES = 2  # that the first window is ready before it is shown, so that the next one may be late
_SPARE_FRAMES = 2  # before the latest time, where the speech is held back for larger windows
_QUICK_S = 0.1  # a first window that takes no longer may be larger
_MANY = 1000  # faces, which no window has
_LATE_S = 0.5  # a receiver that has not asked for so long gets no burst of frames: the clock waits for it


@dataclass
class Cost:
    """About how long generating n faces takes, s: measured once, then corrected by how each window went."""

    base_s: float = 0.0
    per_face_s: float = 0.0
    factor: float = 1.0

    def of(self, n: int) -> float:
        """Return the time for n faces."""
        return self.factor * (self.base_s + n * self.per_face_s)

    def faces_in(self, seconds: float) -> int:
        """Return how many faces can be generated in a time; 0 if not even one."""
        if self.of(1) > seconds:
            return 0
        per_face_s = self.factor * self.per_face_s
        return math.floor((seconds - self.of(0)) / per_face_s + 1e-6) if per_face_s > 0 else _MANY

    def correct(self, n: int, seconds: float) -> None:
        """Take into account that n faces took so long: slower counts at once, faster little by little."""
        expected_s = self.base_s + n * self.per_face_s
        if expected_s > 0:
            ratio = seconds / expected_s
            self.factor = max(0.5 * self.factor + 0.5 * ratio, 0.9 * self.factor + 0.1 * ratio)


@dataclass(eq=False)
class Slot:
    """A frame of the speech at its place in the output. picture: None until it is generated, or for ever.

    place: frames since the speech, or what of it follows a gap, began.
    """

    segment: Segment
    frame: int
    index: int
    place: int
    picture: Any = None

    @property
    def is_last(self) -> bool:
        """Whether the segment has ended with this frame."""
        return self.segment.is_ended and self.frame == self.segment.n_frames - 1


@dataclass(frozen=True)
class Window:
    """Frames to generate together, with so many faces, evenly spread: fewer than frames where time is short."""

    slots: tuple[Slot, ...]
    faces: int


@dataclass(frozen=True)
class Wait:
    """Nothing is to be done before `until_s`, or before something is pushed or given out."""

    until_s: float | None = None


@dataclass(frozen=True)
class Turn:
    """The frame whose turn it is. slot: of the speech; None while nobody speaks."""

    index: int
    slot: Slot | None


@dataclass
class Schedule:
    """The state of a session; all times are of one clock, s. num_frames: the longest window.

    is_realtime: frames are due at the frame rate, and idle between the speech; else they follow one another. ready_s:
    when generating can begin; speech that came before waits until then.
    """

    frame_rate: Fraction
    num_frames: int
    is_realtime: bool
    cost: Cost = field(default_factory=Cost)
    ready_s: float = -math.inf

    def __post_init__(self) -> None:
        self.next_index = 0  # of the output
        self._start_s: float | None = None  # when frame 0 was due
        self._speech: deque[Segment] = deque()  # of which something is not planned yet
        self._slots: dict[int, Slot] = {}
        self._next_frame = 0  # of the first segment
        self._last: Slot | None = None  # that was planned

    def add(self, segment: Segment) -> None:
        """Add a segment, to be spoken after those that there are."""
        self._speech.append(segment)

    def clear(self) -> None:
        """Forget all speech that has not been given out."""
        self._speech.clear()
        self._slots.clear()
        self._next_frame, self._last = 0, None

    def due_s(self, index: int, now_s: float) -> float:
        """Return when a frame is to be shown; as if the next one were shown now, where none has been yet."""
        start_s = now_s - float(self.next_index / self.frame_rate) if self._start_s is None else self._start_s
        return start_s + float(index / self.frame_rate)

    def take(self, now_s: float) -> Turn | Wait:
        """Return what the next frame shows, if it is due."""
        slot = self._slots.get(self.next_index)
        if not self.is_realtime:
            if slot is None or slot.picture is None:
                return Wait()
            return self._given(slot)
        if self._start_s is None or now_s - self.due_s(self.next_index, now_s) > _LATE_S:
            self._start_s = now_s - float(self.next_index / self.frame_rate)
        if (due_s := self.due_s(self.next_index, now_s)) > now_s:
            return Wait(due_s)
        self._drop_finished()
        if slot is None and (self._goes_on() or self._is_overdue(now_s)):
            # Its window could not be begun in time: the sound does without.
            (slot,) = self._bind(1, self.next_index)
        return self._given(slot)

    def _given(self, slot: Slot | None) -> Turn:
        self._slots.pop(self.next_index, None)
        self.next_index += 1
        return Turn(self.next_index - 1, slot)

    def _goes_on(self) -> bool:
        """Return whether the next frame of the output follows a planned one and has its sound."""
        if self._last is None or self._last.index != self.next_index - 1:
            return False
        return bool(self._speech) and self._speech[0].n_ready() > self._next_frame > 0

    def _is_overdue(self, now_s: float) -> bool:
        """Return whether speech that nothing is planned of has waited for as long as it may."""
        if not self._speech or self._follow(self.next_index) > self.next_index:
            return False
        segment, frame = self._speech[0], self._next_frame
        return segment.n_ready() > frame and self._latest_s() <= now_s

    def _latest_s(self) -> float:
        """Return when the next frame of the speech has to be shown at the latest, which has its sound."""
        arrived_s = max(self._speech[0].arrived_s(self._next_frame), self.ready_s)
        return arrived_s + LATEST_S - self._lasts_s(1)

    def plan(self, now_s: float) -> Window | Wait:
        """Return the next window to generate."""
        self._drop_finished()
        if not self._speech:
            return Wait()
        segment, first = self._speech[0], self._next_frame
        n_ready, is_whole = segment.n_ready() - first, segment.is_ended
        if n_ready == 0:
            return Wait()
        if not self.is_realtime:
            if n_ready < self.num_frames and not is_whole:
                return Wait()
            n = min(n_ready, self.num_frames)
            return self._window(n, n, self._follow(self.next_index))
        follow = self._follow(self.next_index)
        if follow - self.next_index >= AHEAD:
            return Wait()
        slack_s = self.due_s(follow, now_s) - now_s
        if self._last is None or self._last.index < self.next_index - 1 or self._is_to_wait(follow, slack_s, now_s):
            return self._begin(n_ready, is_whole, now_s)
        return self._go_on(n_ready, is_whole, follow, slack_s, now_s)

    def done(self, window: Window, pictures: list[Any], seconds: float) -> None:
        """Take the pictures of a window, which took so long."""
        for slot, picture in zip(window.slots, pictures, strict=True):
            slot.picture = picture
        self.cost.correct(window.faces, seconds)

    def _drop_finished(self) -> None:
        while self._speech and self._speech[0].is_ended and self._next_frame >= self._speech[0].n_frames:
            self._speech.popleft()
            self._next_frame = 0

    def _follow(self, index: int) -> int:
        """Return the place after what is planned, but not before `index`."""
        return index if self._last is None else max(index, self._last.index + 1)

    def _is_to_wait(self, follow: int, slack_s: float, now_s: float) -> bool:
        """Return whether the speech is to pause, once, since it comes later than its pictures take.

        Where the pictures take longer than they last, pausing would not help: then the sound goes on without them.
        """
        if slack_s >= self.cost.of(1) + _MARGIN_S or self._lasts_s(_FIRST_FRAMES) < self.cost.of(_FIRST_FRAMES):
            return False
        begin_s = self.due_s(follow, now_s) - self.cost.of(_FIRST_FRAMES) - _MARGIN_S
        return self._speech[0].arrived_s(self._next_frame) > begin_s

    def _begin(self, n_ready: int, is_whole: bool, now_s: float) -> Window | Wait:
        """Plan a first window, to be shown as soon as it is there and a little more.

        Where windows so small cannot be kept up with and the speech comes as it is spoken, it is held back for as long
        as larger ones need.
        """
        if n_ready < _FIRST_FRAMES and not is_whole:
            return Wait()
        quick = min(n_ready, self.num_frames, self.cost.faces_in(_QUICK_S))
        n = max(quick, min(n_ready, _FIRST_FRAMES))
        faces = max(1, min(n, self.cost.faces_in(LATEST_S / 2)))
        shown_s = now_s + self.cost.of(faces) + self._lasts_s(_CUSHION_FRAMES)
        if not is_whole and self._comes_as_spoken():
            shown_s = max(shown_s, self._speech[0].arrived_s(self._next_frame) + self._sustained_s())
        index = self._index_at(min(shown_s, max(self._latest_s(), now_s)) - self.due_s(0, now_s))
        return self._window(n, faces, self._follow(max(self.next_index, index)))

    def _comes_as_spoken(self) -> bool:
        """Return whether the first frames of the speech came about as fast as they last, not all at once."""
        segment, first = self._speech[0], self._next_frame
        came_s = segment.arrived_s(first + _FIRST_FRAMES - 1) - segment.arrived_s(first)
        return came_s > self._lasts_s(_FIRST_FRAMES - 1) / 2

    def _sustained_s(self) -> float:
        """Return how long after its sound a frame is to be shown, so that windows can be kept up with.

        The first frame of a window waits for the others, and for their faces. As long as is allowed, if no window can.
        """
        most_s = LATEST_S - self._lasts_s(_SPARE_FRAMES)
        sizes = range(_FIRST_FRAMES, self.num_frames + 1)
        kept_up = (n for n in sizes if self.cost.of(n) + _MARGIN_S <= self._lasts_s(n))
        waits_s = (self._lasts_s(n - 1) + self.cost.of(n) + 2 * _MARGIN_S for n in kept_up)
        return min(next(waits_s, most_s), most_s)

    def _lasts_s(self, n: int) -> float:
        return float(n / self.frame_rate)

    def _index_at(self, since_start_s: float) -> int:
        return math.ceil(since_start_s * self.frame_rate)

    def _go_on(self, n_ready: int, is_whole: bool, follow: int, slack_s: float, now_s: float) -> Window | Wait:
        """Plan a window that follows another one and is due at a time that stands fast."""
        most = min(n_ready, self.num_frames)
        frame_s = self._lasts_s(1)
        if most < self.num_frames and not is_whole:  # more may come while there is time
            later_s = slack_s - frame_s
            if self.cost.of(most) + _MARGIN_S < later_s:
                return Wait(now_s + later_s - self.cost.of(most) - _MARGIN_S)
            if self._share(most + 1, later_s) >= self._share(most, slack_s) and self._fits(1, later_s):
                return Wait(now_s + frame_s / 2)
        if self._fits(1, slack_s):
            n = max(range(1, most + 1), key=lambda n: (self._share(n, slack_s), n))
            return self._window(n, max(1, self._faces(n, slack_s)), follow)
        # The last face stays until one that is begun now can be there.
        n_kept = self._index_at(self.cost.of(1) + _MARGIN_S - slack_s)
        self._bind(min(max(n_kept, 1), n_ready), follow)
        return self.plan(now_s)

    def _fits(self, n: int, slack_s: float) -> bool:
        return self.cost.of(n) + _MARGIN_S <= slack_s

    def _faces(self, n: int, slack_s: float) -> int:
        """Return how many faces n frames can have that are due so soon, and those after them as well."""
        return min(n, self.cost.faces_in(min(slack_s - _MARGIN_S, self._lasts_s(n))))

    def _share(self, n: int, slack_s: float) -> float:
        return self._faces(n, slack_s) / n

    def _window(self, n: int, faces: int, index: int) -> Window:
        return Window(tuple(self._bind(n, index)), faces)

    def _bind(self, n: int, index: int) -> list[Slot]:
        """Give the next n frames of the speech their places in the output, from `index` on."""
        follows = self._last is not None and self._last.index == index - 1
        place = self._last.place + 1 if follows and self._last is not None else 0
        segment, first = self._speech[0], self._next_frame
        slots = [Slot(segment, first + i, index + i, place + i) for i in range(n)]
        self._slots.update((slot.index, slot) for slot in slots)
        self._next_frame, self._last = first + n, slots[-1]
        return slots
