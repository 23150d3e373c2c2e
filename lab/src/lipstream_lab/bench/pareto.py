"""What of a sweep is worth having: speed against likeness, and the front that nothing else beats in both."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipstream.errors import SettingsError
from lipstream.face.quiet import import_problem
from lipstream.media.atomic import check_beside, write_whole
from lipstream_lab.bench.csv_rows import Row

_SIZE_INCHES = (10, 6)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other matches in both numbers and beats in one, more being better; from the least first number.

    Of points that are equal the first counts.
    """
    front: list[int] = []
    best = -float("inf")
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i)):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front[::-1]


def check_plot(path: Path, *, inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse, before anything is run, a plot that cannot be drawn. Raises OutputError, SettingsError."""
    check_beside(path, inputs=inputs, overwrite=overwrite)
    _figure()


def draw(rows: Sequence[Row], path: Path) -> None:
    """Speed-up against SSIM beside the first row, which is 1 in both, as PNG: the front in a line, named.

    Rows without the one or the other are left out. Raises OutputError, and SettingsError where matplotlib is missing.
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
    axis.plot(*points[0], "*", markersize=14, color="tab:orange", label=f"{first.setting}: {first.words or 'as given'}")
    for index in front:  # nothing lies above and to the right of these
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
    axis.set_xlabel(f"times as fast as {first.setting} ({first.frames_per_s:.2f} frames a second)", parse_math=False)
    axis.set_ylabel(f"SSIM of the repainted region beside {first.setting}", parse_math=False)
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
