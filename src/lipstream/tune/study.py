"""The search: Optuna's TPE over a space, with floors as constraints, early stops, and a study in SQLite that goes on.

Bergstra et al. 2011, "Algorithms for hyper-parameter optimization"; Akiba et al. 2019, "Optuna".
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lipstream.errors import LipstreamError, SettingsError
from lipstream.face.quiet import import_problem
from lipstream.tune.floors import Floor
from lipstream.tune.measure import Measured, Runner
from lipstream.tune.report import Trial
from lipstream.tune.space import Candidate, Space

Report = Callable[[str], None]

# How many times as long as the best so far the first part of the clip may take before the whole is spared.
_SLOWER = 1.5
_FAR = 1e9
_KEY, _SHORTFALLS, _REASON, _RESULT, _PART = "key", "shortfalls", "reason", "result", "part_seconds_per_frame"


class Study:
    """A study in a file: asks for choices, runs them, remembers all of them.

    key: what the study is of; another study in the same file is refused. Raises SettingsError where Optuna is missing
    or the file is not this study.
    """

    def __init__(self, path: Path, key: str, space: Space, floors: Sequence[Floor], seed: int = 0) -> None:
        optuna = load_optuna()
        from sqlalchemy.exc import SQLAlchemyError

        self._optuna, self._space, self._floors = optuna, space, floors
        with _quiet(optuna):
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
            try:
                self._study = optuna.create_study(
                    storage=f"sqlite:///{path}", study_name="lipstream", sampler=sampler, load_if_exists=True
                )
            except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
                raise SettingsError(
                    f"not a study ({type(error).__name__})", file=path, fix="name another -o, or remove it"
                ) from error
        found = self._study.user_attrs.get(_KEY)
        if found not in (None, key):
            raise SettingsError(
                "the study in it is of another model, clip, floor or choice",
                file=path,
                fix="name another -o, or remove it",
            )
        self._study.set_user_attr(_KEY, key)
        self._end_interrupted()

    def _end_interrupted(self) -> None:
        """Count as failed what was running when the study was interrupted."""
        for trial in self._study.get_trials(deepcopy=False):
            if not trial.state.is_finished() and trial.state.name == "RUNNING":
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)

    def search(self, runner: Runner, n_trials: int | None, limit_s: float | None, report: Report) -> list[Trial]:
        """Run trials until there are `n_trials` in the study, or for `limit_s`; return all of the study's.

        The first ones are the published behaviour and the presets. Raises what the published behaviour raises.
        """
        begun_s = time.monotonic()
        exact_part = runner.reference("part")
        exact = exact_part if runner.is_one_part else runner.reference("whole")
        report(f"exact: {1 / exact.seconds_per_frame:.2f} frames/s")
        if not self._study.get_trials(deepcopy=False):
            for choice in self._space.starts():
                self._study.enqueue_trial(choice)
        elif self._earlier(self._space.candidate(self._space.exact())) is None:  # interrupted in the first trial
            self._study.enqueue_trial(self._space.exact())
        while not _is_over(len(self._ended()), n_trials, time.monotonic() - begun_s, limit_s):
            trial = self._study.ask()
            try:
                self._run(trial, runner, (exact_part, exact), report)
            except BaseException:
                self._end_interrupted()
                raise
        return self.trials()

    def _run(self, trial: Any, runner: Runner, exact: tuple[Measured, Measured], report: Report) -> None:
        """Run one trial to its end, or stop it early."""
        choice = {axis.name: _suggested(trial, axis) for axis in self._space.axes}
        candidate = self._space.candidate(choice)
        earlier = self._earlier(candidate)
        known = None if earlier is None else _measured_in(earlier)
        if known is None and candidate == self._space.candidate(self._space.exact()):
            known = exact[1]
            trial.set_user_attr(_PART, exact[0].seconds_per_frame)
        states = self._optuna.trial.TrialState
        try:
            if known is None and earlier is not None:
                attributes = earlier.user_attrs
                raise _Stopped(f"as trial {earlier.number}, {attributes[_REASON]}", attributes[_SHORTFALLS])
            if known is None:
                known = self._measured(trial, candidate, runner, exact)
        except _Stopped as stopped:
            self._note(trial, stopped.reason, stopped.shortfalls, None)
            self._study.tell(trial, state=states.PRUNED)
            report(f"trial {trial.number}: {stopped.reason}: {choice}")
            return
        except (LipstreamError, RuntimeError) as error:  # torch raises RuntimeError for what it does not support
            self._note(trial, str(error).splitlines()[0], [math.inf] * len(self._floors), None)
            self._study.tell(trial, state=states.FAIL)
            report(f"trial {trial.number}: failed, {error}: {choice}")
            return
        shortfalls = [floor.shortfall(known.values, exact[1].values) for floor in self._floors]
        self._note(trial, "", shortfalls, known)
        self._study.tell(trial, known.seconds_per_frame)
        speedup = exact[1].seconds_per_frame / known.seconds_per_frame
        kept = "" if max(shortfalls) <= 0 else ", below a floor"
        found = {floor.measure: known.values.get(floor.measure) for floor in self._floors}
        report(f"trial {trial.number}: {speedup:.2f} times as fast, {found}{kept}: {choice}")

    def _measured(self, trial: Any, candidate: Candidate, runner: Runner, exact: tuple[Measured, Measured]) -> Measured:
        """Run the first part, and the whole if that promises something. Raises _Stopped where it does not."""
        part = runner.run(candidate, "part")  # warms up too
        trial.set_user_attr(_PART, part.seconds_per_frame)
        shortfalls = [floor.shortfall(part.values, exact[0].values) for floor in self._floors]
        for floor in self._floors:
            if floor.surely_missed(part.values, exact[0].values):
                raise _Stopped(f"stopped early, {floor.measure} {part.values.get(floor.measure)}", shortfalls)
        best = self._best_part()
        if best is not None and part.seconds_per_frame > _SLOWER * best:
            raise _Stopped("stopped early, too slow", shortfalls)
        return part if runner.is_one_part else runner.run(candidate, "whole")

    def _best_part(self) -> float | None:
        """Return the seconds per frame on the first part of the fastest trial that keeps the floors."""
        best = min((t for t in self.trials() if t.feasible), key=lambda t: t.seconds_per_frame or 0, default=None)
        if best is None:
            return None
        found = self._study.get_trials(deepcopy=False)[best.number].user_attrs.get(_PART)
        return None if found is None else float(found)

    def _earlier(self, candidate: Candidate) -> Any:
        """Return the first trial of the same settings that came to an end: measured, stopped or failed; or None."""
        for found in self._ended():
            if _REASON in found.user_attrs and self._space.candidate(found.params) == candidate:
                return found
        return None

    def _note(self, trial: Any, reason: str, shortfalls: list[float], result: Measured | None) -> None:
        # JSON in the study's file: it has no infinity.
        kept = [min(max(value, -_FAR), _FAR) for value in shortfalls]
        trial.set_user_attr(_SHORTFALLS, kept)
        for floor, value in zip(self._floors, kept, strict=True):
            trial.set_constraint(str(floor), value)
        trial.set_user_attr(_REASON, reason)
        if result is not None:
            trial.set_user_attr(_RESULT, json.dumps(asdict(result)))

    def _ended(self) -> list[Any]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def trials(self) -> list[Trial]:
        """Return the study's trials, in order."""
        return [_trial(trial) for trial in self._ended()]


class _Stopped(Exception):
    def __init__(self, reason: str, shortfalls: list[float]) -> None:
        super().__init__(reason)
        self.reason, self.shortfalls = reason, shortfalls


def _suggested(trial: Any, axis: Any) -> Any:
    if axis.is_range:
        return trial.suggest_int(axis.name, min(axis.values), max(axis.values), log=True)
    return trial.suggest_categorical(axis.name, axis.values)


def _trial(found: Any) -> Trial:
    result, shortfalls = _measured_in(found), found.user_attrs.get(_SHORTFALLS, [math.inf])
    return Trial(
        number=found.number,
        choice=found.params,
        state={"COMPLETE": "complete", "PRUNED": "pruned"}.get(found.state.name, "failed"),
        reason=found.user_attrs.get(_REASON, ""),
        seconds_per_frame=None if result is None else result.seconds_per_frame,
        values={} if result is None else result.values,
        feasible=result is not None and max(shortfalls) <= 0,
    )


def _measured_in(found: Any) -> Measured | None:
    """Return what a trial measured, None if it was stopped or failed."""
    result = json.loads(found.user_attrs.get(_RESULT, "null"))
    return None if result is None else Measured(**result)


def _is_over(n: int, n_trials: int | None, spent_s: float, limit_s: float | None) -> bool:
    return (n_trials is not None and n >= n_trials) or (limit_s is not None and spent_s >= limit_s)


def load_optuna() -> Any:
    """Return the library. Raises SettingsError that names the extra where it is missing."""
    try:
        import optuna
    except ImportError as error:
        problem = import_problem("lipstream[tune]", error)
        raise SettingsError(f"tune: {problem.message}", fix=problem.fix) from error
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Keep the library from logging what is reported here anyway, and from warning that parts of it may change."""
    import warnings

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
