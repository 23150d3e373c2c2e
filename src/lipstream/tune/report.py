"""What a tuning found: the Pareto front as a table and a plot, and a row per trial."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lipstream.evaluate.measures import MEASURES
from lipstream.evaluate.plots import figure_class

_SIZE_INCHES = (10, 6)


@dataclass(frozen=True)
class Trial:
    """One trial. state: complete, pruned or failed, with the reason. seconds_per_frame: None if it was not finished.

    feasible: every floor is kept.
    """

    number: int
    choice: Mapping[str, Any]
    state: str
    reason: str
    seconds_per_frame: float | None
    values: Mapping[str, float | None]
    feasible: bool


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other dominates, by rising first coordinate; larger is better.

    Of equal points only the first is returned.
    """
    front: list[int] = []
    best = -float("inf")
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i)):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front[::-1]


def front(trials: Sequence[Trial], measure: str) -> list[Trial]:
    """Return the finished trials that no other beats in both speed and `measure`, the slowest first."""
    done = [trial for trial in trials if trial.seconds_per_frame and trial.values.get(measure) is not None]
    sign = -1 if MEASURES[measure].better == "lower" else 1
    points = [(1 / (t.seconds_per_frame or 1), sign * (t.values.get(measure) or 0.0)) for t in done]
    return [done[i] for i in pareto_front(points)]


def table(trials: Sequence[Trial], exact: Trial, measures: Sequence[str]) -> str:
    """Return the Pareto front against the first of `measures` as text: speed-up, measures, what differs from exact."""
    lines = [f"{'trial':>5}  {'times as fast':>13}  " + "  ".join(f"{name:>12}" for name in measures)]
    for trial in front(trials, measures[0]):
        speedup = (exact.seconds_per_frame or 0) / (trial.seconds_per_frame or 1)
        values = "  ".join(f"{_shown(trial.values.get(name)):>12}" for name in measures)
        missed = "" if trial.feasible else "  (below a floor)"
        lines.append(f"{trial.number:5}  {speedup:13.2f}  {values}  {described(trial.choice, exact.choice)}{missed}")
    return "\n".join(lines)


def described(choice: Mapping[str, Any], exact: Mapping[str, Any]) -> str:
    """Return what of a choice differs from the published behaviour, in words."""
    differs = {name: value for name, value in choice.items() if value != exact.get(name)}
    return ", ".join(f"{name} {value}" for name, value in differs.items()) or "exact"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def to_csv(trials: Sequence[Trial]) -> bytes:
    """Return a row per trial, pruned and failed ones too, as a CSV file's content."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.choice))
    measured = [name for name in MEASURES if any(trial.values.get(name) is not None for trial in trials)]
    text = io.StringIO()
    columns = ["trial", "state", "reason", "feasible", "seconds_per_frame", *names, *measured]
    writer = csv.writer(text)
    writer.writerow(columns)
    for trial in trials:
        own = [trial.number, trial.state, trial.reason, trial.feasible, trial.seconds_per_frame]
        chosen, found = [trial.choice.get(n) for n in names], [trial.values.get(n) for n in measured]
        writer.writerow(["" if value is None else value for value in (*own, *chosen, *found)])
    return text.getvalue().encode()


def plot(trials: Sequence[Trial], exact: Trial, chosen: Trial, measure: str, bound: float | None, title: str) -> bytes:
    """Return a plot of speed-up against a measure, the Pareto front and the named trial in it, as a PNG's content."""
    figure = figure_class()(figsize=_SIZE_INCHES, layout="constrained")
    axis = figure.subplots()
    done = [trial for trial in trials if trial.seconds_per_frame and trial.values.get(measure) is not None]

    def places(some: Sequence[Trial]) -> tuple[list[float], list[float | None]]:
        speeds = [(exact.seconds_per_frame or 0) / (trial.seconds_per_frame or 1) for trial in some]
        return speeds, [trial.values.get(measure) for trial in some]

    best = front(trials, measure)
    axis.plot(*places([trial for trial in done if not trial.feasible]), "x", color="0.6", label="below a floor")
    axis.plot(*places([trial for trial in done if trial.feasible]), "o", color="0.6", markersize=4, label="trials")
    axis.plot(*places(best), "o-", color="tab:blue", label="Pareto front")
    axis.plot(*places([chosen]), "*", color="tab:orange", markersize=16, label=f"named: trial {chosen.number}")
    if bound is not None:
        axis.axhline(bound, color="tab:red", linewidth=0.8, linestyle="--", label=f"floor {bound:g}")
    for trial, x, y in zip(best, *places(best), strict=True):
        axis.annotate(f"{trial.number}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axis.set_xlabel("times as fast as the published behaviour")
    axis.set_ylabel(MEASURES[measure].title, parse_math=False)
    axis.set_title(title, fontsize=9, parse_math=False)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left", fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
