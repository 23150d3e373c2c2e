"""The scores of many clips together: a row a clip, means with bootstrap intervals, JSON and CSV. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lipstream.evaluate.measures import COUNTS, MEASURES
from lipstream.version import __version__

if TYPE_CHECKING:
    from lipstream.evaluate.score import ClipScore

_RESAMPLES, _LEVEL = 10_000, 0.95


@dataclass(frozen=True)
class Mean:
    """The mean of a measure over clips, and its 95 % bootstrap interval: None for a single clip."""

    mean: float
    low: float | None
    high: float | None
    clips: int


@dataclass(frozen=True)
class Failure:
    """A clip that could not be scored, and why."""

    clip: str
    error: str


@dataclass(frozen=True)
class Report:
    """What was measured. scores: in the order of the clips.

    distances: "fid" and "fvd", over all their frames, None without the network or with too few frames. absent: why a
    measure was not taken on any clip, by its name.
    """

    scores: tuple[ClipScore, ...]
    failures: tuple[Failure, ...]
    distances: Mapping[str, float | None]
    absent: dict[str, str]

    def means(self) -> dict[str, Mean]:
        """Return the mean of each measure over the clips that have it."""
        found = {}
        for name in MEASURES:
            values = [score.measures.get(name) for score in self.scores]
            known = [value for value in values if value is not None and math.isfinite(value)]
            if known:
                found[name] = mean_with_interval(known)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object; a measure that is undefined or infinite is null."""
        return {
            "version": __version__,
            "clips": [_row(score) for score in self.scores],
            "means": {name: asdict(mean) for name, mean in self.means().items()},
            "fid": self.distances.get("fid"),
            "fvd": self.distances.get("fvd"),
            "scored": len(self.scores),
            "failed": len(self.failures),
            "failures": [asdict(failure) for failure in self.failures],
            "absent": self.absent,
        }

    def to_json(self) -> bytes:
        """Return `to_dict` as a file's content."""
        return (json.dumps(self.to_dict(), indent=1) + "\n").encode()

    def to_csv(self) -> bytes:
        """Return a row per clip, failed ones too, as a CSV file's content."""
        text = io.StringIO()
        columns = ["clip", "reference", "source", "speech", *COUNTS, *MEASURES, "error"]
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        for score in self.scores:
            row = {name: value for name, value in _row(score).items() if name in columns}
            writer.writerow({name: "" if value is None else value for name, value in row.items()})
        for failure in self.failures:
            writer.writerow({"clip": failure.clip, "error": failure.error})
        return text.getvalue().encode()


def mean_with_interval(values: Sequence[float]) -> Mean:
    """Return the mean and its percentile interval over resampled clips (Efron and Tibshirani 1993), seeded."""
    if len(values) == 1:
        return Mean(float(values[0]), None, None, 1)
    array = np.asarray(values, np.float64)
    drawn = np.random.default_rng(0).integers(0, len(array), (_RESAMPLES, len(array)))
    low, high = np.quantile(array[drawn].mean(axis=1), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Mean(float(array.mean()), float(low), float(high), len(array))


def _row(score: ClipScore) -> dict[str, Any]:
    files = score.files
    names = {"clip": files.video, "reference": files.reference, "source": files.source, "speech": files.speech}
    row: dict[str, Any] = {name: None if path is None else str(path) for name, path in names.items()}
    for name in (*COUNTS, *MEASURES):
        value = score.measures.get(name)
        if value is None or not math.isfinite(value):
            row[name] = None
        else:
            row[name] = int(value) if name in COUNTS else round(value, 6)
    return row | {"absent": score.absent}


def table(report: Report) -> str:
    """Return the means, or a single clip's values, as text for a person, and what was not measured and why."""
    lines = [f"{len(report.scores)} of {len(report.scores) + len(report.failures)} clips scored"]
    means = report.means()
    width = max((len(MEASURES[name].title) for name in means), default=0)
    for name, mean in means.items():
        measure = MEASURES[name]
        value = f"{mean.mean:.{measure.digits}f}" + (f" {measure.unit}" if measure.unit else "")
        interval = "" if mean.low is None else f"  [{mean.low:.{measure.digits}f}, {mean.high:.{measure.digits}f}]"
        fewer = "" if mean.clips == len(report.scores) else f"  ({mean.clips} clips)"
        lines.append(f"  {measure.title:{width}}  {name:24}  {value}{interval}{fewer}")
    for name, distance in report.distances.items():
        if distance is not None:
            lines.append(f"  {f'{name.upper()} of the faces':{width}}  {name:24}  {distance:.2f}")
    reasons: dict[str, list[str]] = {}
    for name, reason in report.absent.items():
        reasons.setdefault(reason, []).append(name)
    lines += [f"not measured: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    lines += [f"failed: {failure.clip}: {failure.error}" for failure in report.failures]
    return "\n".join(lines)
