"""The page of plots of an evaluation, as PNG: each measure over the clips, and the mouth over time for a single one."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lipstream.errors import SettingsError
from lipstream.evaluate.measures import MEASURES
from lipstream.evaluate.openings import OPEN
from lipstream.evaluate.syncnet import MAX_SHIFT
from lipstream.face.quiet import import_problem
from lipstream.settings import FRAME_RATE_HZ

if TYPE_CHECKING:
    from lipstream.evaluate.score import ClipScore
    from lipstream.evaluate.summary import Report

_COLUMNS = 4
_CELL_INCHES = (3.6, 2.3)
_COLOURS = {"video": "tab:blue", "reference": "tab:green", "source": "tab:orange"}
_ARROW = {"higher": " (higher is better)", "lower": " (lower is better)", "neither": ""}


def figure_class() -> Any:
    """Return matplotlib's Figure. Raises SettingsError where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        problem = import_problem("lipstream[measure]", error)
        raise SettingsError(f"plot: {problem.message}", fix=problem.fix) from error
    return Figure


def page(report: Report) -> bytes:
    """Return the page as a PNG file's content. Raises SettingsError where matplotlib is not installed."""
    means = report.means()
    single = report.scores[0] if len(report.scores) == 1 else None
    rows = 3 if single else max(math.ceil(len(means) / _COLUMNS), 1)
    size = _COLUMNS * _CELL_INCHES[0], rows * _CELL_INCHES[1] + 0.6
    figure = figure_class()(figsize=size, layout="constrained")
    grid = figure.add_gridspec(rows, _COLUMNS)
    total = len(report.scores) + len(report.failures)
    figure.suptitle(f"{len(report.scores)} of {total} clips scored", fontsize=11, parse_math=False)
    if single is not None:
        _over_time(figure.add_subplot(grid[0, :]), single)
        _by_shift(figure.add_subplot(grid[1, :2]), single)
        _values(figure.add_subplot(grid[1:, 2:]), report)
    else:
        for place, name in enumerate(means):
            _over_clips(figure.add_subplot(grid[place // _COLUMNS, place % _COLUMNS]), report, name)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()


def _over_clips(axis: Any, report: Report, name: str) -> None:
    """Draw every clip's value, the mean and its interval."""
    measure, mean = MEASURES[name], report.means()[name]
    values = [score.measures.get(name) for score in report.scores]
    shown = [math.nan if value is None else value for value in values]
    axis.plot(range(len(shown)), shown, "o", color="0.5", markersize=4)
    axis.axhline(mean.mean, color="tab:blue", linewidth=1)
    if mean.low is not None:
        axis.axhspan(mean.low, mean.high, color="tab:blue", alpha=0.15)
    axis.set_title(f"{measure.title}{_ARROW[measure.better]}", fontsize=7, parse_math=False)
    axis.set_ylabel(measure.unit, fontsize=7, parse_math=False)
    axis.set_xticks([])
    axis.tick_params(labelsize=7)
    axis.margins(y=0.2)
    axis.annotate(f"{mean.mean:.{measure.digits}f}", (0.98, 0.92), xycoords="axes fraction", ha="right", fontsize=8)


def _values(axis: Any, report: Report) -> None:
    """Write a single clip's values."""
    axis.set_axis_off()
    for place, (name, mean) in enumerate(report.means().items()):
        measure, y = MEASURES[name], 1 - place / max(len(MEASURES), 1)
        axis.text(0.0, y, f"{measure.title}{_ARROW[measure.better]}", fontsize=8, va="top", parse_math=False)
        value = f"{mean.mean:.{measure.digits}f} {measure.unit}"
        axis.text(1.0, y, value, fontsize=8, va="top", ha="right", parse_math=False)


def _over_time(axis: Any, score: ClipScore) -> None:
    """Draw the mouths' openings of the clip and of what it is compared with, and the speech's loudness."""
    for name, openings in score.series.openings.items():
        axis.plot(np.arange(len(openings)) / FRAME_RATE_HZ, openings, color=_COLOURS[name], label=name, linewidth=1)
    axis.axhline(OPEN, color="0.7", linewidth=0.8, linestyle=":")
    axis.set_ylabel("mouth opening,\nface heights", fontsize=8)
    axis.set_xlabel("s", fontsize=8)
    axis.legend(loc="upper right", fontsize=7)
    axis.set_title(str(score.files.video), fontsize=8, parse_math=False)
    levels = score.series.levels_db
    if len(levels):
        loudness = axis.twinx()
        loudness.fill_between(np.arange(len(levels)) / FRAME_RATE_HZ, levels, levels.min(), color="0.85", zorder=0)
        loudness.set_ylabel("speech, dB", fontsize=8)
        axis.set_zorder(loudness.get_zorder() + 1)
        axis.patch.set_visible(False)


def _by_shift(axis: Any, score: ClipScore) -> None:
    """Draw SyncNet's distance by shift, or say why there is none."""
    distances = score.series.mean_distances
    axis.set_title("SyncNet: mean distance by shift of the speech", fontsize=8)
    if not distances:
        reason = score.absent.get("sync_c", "")
        axis.annotate(reason, (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=8, parse_math=False)
        axis.set_axis_off()
        return
    axis.plot(range(MAX_SHIFT, -MAX_SHIFT - 1, -1), distances, "o-", markersize=3)
    axis.set_xlabel("frames by which the picture comes after the speech", fontsize=8)
