"""Plot a sweep: speed against SSIM, with the Pareto front."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipstream.errors import SettingsError
from lipstream.face.quiet import import_problem
from lipstream.media.atomic import check_beside, write_whole
from lipstream.tune.report import pareto_front
from lipstream_lab.bench.csv_rows import Row

_SIZE_INCHES = (10, 6)


def check_plot(path: Path, *, inputs: Sequence[Path], overwrite: bool) -> None:
    """Check, before anything is run, that the plot can be drawn and written. Raises OutputError, SettingsError."""
    check_beside(path, inputs=inputs, overwrite=overwrite)
    _figure()


def draw(rows: Sequence[Row], path: Path) -> None:
    """Plot speed-up against SSIM as PNG, relative to the first row (1 in both); label the Pareto front.

    Rows without one of the two are left out. Raises OutputError, and SettingsError if matplotlib is not installed.
    """
    first = rows[0]
    found = {row.setting: (row.speedup, row.ssim) for row in rows[1:]}
    points = [(1.0, 1.0), *((speed, ssim) for speed, ssim in found.values() if speed is not None and ssim is not None)]
    names = [first.setting, *(name for name, figures in found.items() if None not in figures)]
    front = pareto_front(points)
    figure = _figure()
    axis = figure.subplots()
    axis.scatter(*zip(*points, strict=True), s=18, color="0.6", label="settings")
    axis.plot(*zip(*(points[i] for i in front), strict=True), "o-", color="tab:blue", label="Pareto front")
    axis.plot(
        *points[0], "*", markersize=14, color="tab:orange", label=f"{first.setting}: {first.options or 'as given'}"
    )
    for index in front:  # no point lies above and to the right of a label
        axis.annotate(
            names[index],
            points[index],
            xytext=(4, 4),
            textcoords="offset points",
            rotation=20,
            fontsize=8,
            parse_math=False,
        )
    axis.margins(0.12)
    axis.grid(alpha=0.3)
    axis.set_xlabel(f"speed-up over {first.setting} ({first.frames_per_s:.2f} frames per second)", parse_math=False)
    axis.set_ylabel(f"SSIM of the repainted region against {first.setting}", parse_math=False)
    axis.set_title(f"{first.model}, {first.input}\n{first.machine}", fontsize=9, parse_math=False)
    axis.legend(loc="lower left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(path, picture.getvalue())


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        problem = import_problem("lipstream[measure]", error)
        raise SettingsError(f"plot: {problem.message}", fix=problem.fix) from error
    return Figure(figsize=_SIZE_INCHES, layout="constrained")
