"""How far a run has come: bars on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from lipstream.cli.console import say
from lipstream.estimate import Estimate

if TYPE_CHECKING:
    from lipstream.results import Progress

Mode = Literal["auto", "bar", "plain", "json", "none"]

_LINE_EVERY_S = 10.0


class Reporter:
    """Shows a command's progress on standard error; this one shows none of it."""

    def notice(self, message: str) -> None:
        """Show something that the user should know, and let it stay."""
        say(f"lipstream: {message}")

    def status(self, message: str) -> None:
        """Say what is being done before any frame is."""

    def update(self, progress: Progress) -> None:
        """Show how far the stages are; called about twice a second, from one thread."""

    def jobs(self, ended: int, failed: int, n_jobs: int) -> None:
        """Show how many jobs of a batch have ended, and how many of them failed; called often, from one thread."""


def add_progress_option(group: argparse._ArgumentGroup) -> None:
    """Add --progress."""
    group.add_argument(
        "--progress",
        default="auto",
        choices=get_args(Mode),
        help="how to show it on standard error; auto: bar on a terminal, else a line every 10 s [auto]",
    )


@contextmanager
def reporting(mode: Mode, *, quiet: bool) -> Iterator[Reporter]:
    """Yield what shows progress in a mode; `quiet` decides for none where the mode is auto."""
    if mode == "auto":
        is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        mode = "none" if quiet else "bar" if is_terminal else "plain"
    if mode == "bar":
        with _bars() as reporter:
            yield reporter
    else:
        yield {"plain": _Lines, "json": _JsonLines, "none": Reporter}[mode]()


class _Lines(Reporter):
    """One line at the beginning, and one every ten seconds."""

    def __init__(self) -> None:
        self._estimate = Estimate()
        self._due_s = 0.0
        self._shown = -1

    def status(self, message: str) -> None:
        say(f"lipstream: {message}")

    def update(self, progress: Progress) -> None:
        now_s = time.monotonic()
        self._estimate.add(progress.frames, now_s)
        is_last = progress.frames == progress.n_frames
        if progress.frames == self._shown if is_last else now_s < self._due_s:
            return
        self._due_s, self._shown = now_s + _LINE_EVERY_S, progress.frames
        stages = ", ".join(f"{stage.name} {stage.frames}" for stage in progress.stages)
        say(f"lipstream: {_total(progress, self._estimate, now_s)} ({stages})")

    def jobs(self, ended: int, failed: int, n_jobs: int) -> None:
        now_s = time.monotonic()
        if ended == self._shown or (now_s < self._due_s and ended < n_jobs):
            return
        self._due_s, self._shown = now_s + _LINE_EVERY_S, ended
        say(f"lipstream: {_jobs(ended, failed, n_jobs)}")


class _JsonLines(Reporter):
    """One JSON object per line, for programs."""

    def __init__(self) -> None:
        self._estimate = Estimate()
        self._jobs_shown = -1

    def notice(self, message: str) -> None:
        say(json.dumps({"event": "notice", "message": message}))

    def status(self, message: str) -> None:
        say(json.dumps({"event": "status", "message": message}))

    def update(self, progress: Progress) -> None:
        now_s = time.monotonic()
        self._estimate.add(progress.frames, now_s)
        say(
            json.dumps(
                {
                    "event": "progress",
                    "frames": progress.frames,
                    "n_frames": progress.n_frames,
                    "frames_per_s": _rounded(self._estimate.frames_per_s),
                    "left_s": _rounded(self._estimate.left_s(progress.n_frames, now_s)),
                    "stages": {stage.name: stage.frames for stage in progress.stages},
                }
            )
        )

    def jobs(self, ended: int, failed: int, n_jobs: int) -> None:
        if ended != self._jobs_shown:
            self._jobs_shown = ended
            say(json.dumps({"event": "jobs", "ended": ended, "failed": failed, "n_jobs": n_jobs}))


@contextmanager
def _bars() -> Iterator[Reporter]:
    """Show a bar per stage, all from the beginning, above a line with the total; they vanish at the end."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as StageBars
    from rich.text import Text

    columns = (TextColumn("{task.description:>9}"), BarColumn(bar_width=None), TextColumn("{task.completed:.0f}"))
    bars, line = StageBars(*columns, expand=True), Text("", no_wrap=True, overflow="ellipsis")

    class Bars(Reporter):
        def __init__(self) -> None:
            self._estimate = Estimate()
            self._tasks: dict[str, Any] = {}

        def status(self, message: str) -> None:
            line.plain = message

        def update(self, progress: Progress) -> None:
            now_s = time.monotonic()
            self._estimate.add(progress.frames, now_s)
            for stage in progress.stages:
                if stage.name not in self._tasks:
                    self._tasks[stage.name] = bars.add_task(stage.name, total=progress.n_frames)
                bars.update(self._tasks[stage.name], completed=stage.frames)
            line.plain = _total(progress, self._estimate, now_s)

        def jobs(self, ended: int, failed: int, n_jobs: int) -> None:
            task = self._tasks.get("jobs")
            if task is None:
                task = self._tasks["jobs"] = bars.add_task("jobs", total=n_jobs)
            bars.update(task, completed=ended)
            line.plain = _jobs(ended, failed, n_jobs)

    with Live(Group(bars, line), console=Console(stderr=True), transient=True, refresh_per_second=4):
        yield Bars()


def _jobs(ended: int, failed: int, n_jobs: int) -> str:
    return f"{ended}/{n_jobs} jobs" + (f", {failed} failed" if failed else "")


def _total(progress: Progress, estimate: Estimate, now_s: float) -> str:
    """Return the total as a line of at most 40 columns for clips of up to 99,999 frames."""
    rate, left_s = estimate.frames_per_s, estimate.left_s(progress.n_frames, now_s)
    speed = "" if rate is None else f", {rate:.1f}/s"
    left = "" if left_s is None else f", {duration(left_s)} left"
    return f"{progress.frames}/{progress.n_frames} frames{speed}{left}"


def duration(time_s: float) -> str:
    """Return a time as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
