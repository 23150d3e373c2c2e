"""What a live session takes and gives. Imports no torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import SettingsError
from lipstream.settings import SyncSettings


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A picture, and the sound to be played while it is shown.

    picture: (height, width, 3) uint8 RGB, the receiver's own. time_s: from the first frame of the session to this one,
    n / frame_rate for frame n. samples: (n,) float32, full scale 1, mono, at `sample_rate_hz`, exactly as long as the
    frame but for a rounding that never adds up; silence where nobody speaks. is_speech: the samples were pushed.
    ends_segment: they are the last of a segment.
    """

    picture: NDArray[np.uint8]
    time_s: float
    samples: NDArray[np.float32]
    sample_rate_hz: int
    is_speech: bool
    ends_segment: bool


@dataclass(frozen=True)
class LiveSettings:
    """How a session runs. Raises SettingsError.

    realtime: frames come at the frame rate, and idle while nobody speaks; else those of the speech come as soon as they
    are there, and no others. look_ahead_s: how much sound has to be there after a frame before it is generated, s; with
    0.27 the bundled model's audio features are those of the whole recording. sync: how faces are generated.
    """

    realtime: bool = True
    look_ahead_s: float = 0.27
    sync: SyncSettings = field(default_factory=SyncSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.look_ahead_s <= 2:
            raise SettingsError(f"look_ahead_s = {self.look_ahead_s:g}: must be from 0 to 2", setting="look_ahead_s")


class LiveSession(Protocol):
    """Speech is pushed in, frames come out: see `LipSync.live`. A context manager that closes it.

    All methods may be called from any thread; frames are taken by one at a time.
    """

    def push_audio(self, samples: NDArray[Any], sample_rate_hz: int) -> None:
        """Add speech: float32 in [-1, 1] or int16, (n,) or (n, channels). Never waits.

        Within a segment the rate stays the same. Raises InputError, SettingsError.
        """

    def end_segment(self) -> None:
        """Say that the speech ends here: all that was pushed is played, and the mouth may close."""

    def interrupt(self) -> None:
        """Throw away all speech that has not been given out; the next frame idles."""

    def close(self) -> None:
        """End the session, and with it the iteration. May be called twice."""

    def __enter__(self) -> LiveSession: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[LiveFrame]:
        """Yield frames, each when it is to be shown, until the session is closed. Raises what went wrong."""

    def __aiter__(self) -> AsyncIterator[LiveFrame]:
        """Yield frames as `__iter__` does, without holding up the event loop while none is due."""
