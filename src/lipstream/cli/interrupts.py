"""Ctrl-C, SIGTERM and SIGHUP: the first ends a command in order, the second at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SHOW_CURSOR = b"\x1b[?25h\n"  # which progress bars hide


class Interrupts:
    """Turns the first signal into KeyboardInterrupt and sets `cancel`; a second one ends the process.

    A context manager. Off the main thread, where Python allows no signal handlers, it changes nothing.
    """

    def __init__(self) -> None:
        self.cancel = threading.Event()
        self._received: int | None = None
        self._before: dict[int, object] = {}

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as a shell reports a program that it ended; 130 for none."""
        return 128 + (self._received or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # What is ignored on purpose (nohup) stays ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            _remove_unfinished_outputs()
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)
            os._exit(128 + number)
        self._received = number
        self.cancel.set()
        raise KeyboardInterrupt


def _remove_unfinished_outputs() -> None:
    output_file = sys.modules.get("lipstream.media.output_file")
    if output_file is not None:
        output_file.remove_unfinished()
