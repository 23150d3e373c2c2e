"""Many machines: segments of a clip, or whole jobs, on a Ray cluster, by actors that keep the model in memory.

What goes through Ray's object store is small: paths, settings, results. Videos, tables and pieces lie on storage that
all nodes share, or at addresses. An actor that dies is started again by Ray, elsewhere if its node is gone, and what it
had begun is given to whoever is free: a segment or a job depends on nothing but its inputs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from lipstream.errors import LipstreamError, ModelError
from lipstream.jobs import JobError, JobResult, SyncJob, run_job
from lipstream.media.audio import n_output_frames
from lipstream.pipeline.analyse import FaceTable, parts_of, table_of
from lipstream.pipeline.caller import POLL_S, Watch, raise_if_cancelled
from lipstream.pipeline.file_job import Inputs
from lipstream.pipeline.people_table import Found
from lipstream.pipeline.plan import Segment
from lipstream.pipeline.render import SegmentedRun
from lipstream.pipeline.work import FACES
from lipstream.scale.batch import Execute, file_work
from lipstream.scale.ray_nodes import RaySettings, actors_of, check_nodes, check_seen, connect, ray_library, short
from lipstream.settings import RuntimeSettings, SyncSettings

logger = logging.getLogger(__name__)

MAX_RETRIES = 3
"""How often a task is begun again whose actor died, before it counts as failed."""

_MOST_DEATHS = 50


@dataclass
class _Task:
    """A call of an actor's method. tag: what it is about."""

    tag: Any
    method: str
    arguments: tuple[Any, ...]
    retries: int = 0


@dataclass(frozen=True)
class Finished:
    """What came of a task: a value, or an error."""

    tag: Any
    value: Any
    error: LipstreamError | None
    retries: int

    def result(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


class _Actor:
    """Keeps a LipSync in a process of the cluster. Its methods return a value and an error, one of them None."""

    def __init__(self, model: str, runtime: dict[str, Any]) -> None:
        self._model, self._runtime = model, runtime
        self._sync: Any = None

    def ready(self) -> tuple[Any, LipstreamError | None]:
        """Load the model."""
        _, error = _outcome(self._load)
        return None, error

    def settings_used(self, settings: SyncSettings) -> tuple[Any, LipstreamError | None]:
        return _outcome(lambda: self._load().settings_used(settings))

    def frame_rate(self, *arguments: Any) -> tuple[Any, LipstreamError | None]:
        return _outcome(lambda: self._load().frame_rate(*arguments))

    def run_key(self, *arguments: Any) -> tuple[Any, LipstreamError | None]:
        return _outcome(lambda: self._load().run_key(*arguments))

    def prepare(
        self, inputs: Inputs, settings: SyncSettings, folder: Path, segment_s: float | None, workers: int
    ) -> tuple[Any, LipstreamError | None]:
        return _outcome(lambda: self._load().prepare(inputs, settings, folder, segment_s=segment_s, workers=workers))

    def index_frames(self, *arguments: Any) -> tuple[Any, LipstreamError | None]:
        return _outcome(lambda: (*self._load().index_frames(*arguments), self._load().detector.name))

    def search(self, *arguments: Any) -> tuple[Any, LipstreamError | None]:
        return _outcome(lambda: self._load().search(*arguments))

    def render(self, run: SegmentedRun, segments: Sequence[Segment]) -> tuple[Any, LipstreamError | None]:
        return _outcome(lambda: self._load().render(run, segments))

    def job(self, job: SyncJob, work: str | None) -> tuple[Any, LipstreamError | None]:
        """Do a job; what becomes of it is a JobResult."""
        from lipstream.scale.devices import whole_files

        return _outcome(lambda: run_job(job, file_work(whole_files(self._load(), work, None))))

    def process(self) -> tuple[Any, LipstreamError | None]:
        """Return the process that this is."""
        return os.getpid(), None

    def _load(self) -> Any:
        from lipstream.lipsync import LipSync

        if self._sync is None:
            self._sync = LipSync.load(self._model, RuntimeSettings.from_dict(self._runtime))
        return self._sync


def _outcome(call: Callable[[], Any]) -> tuple[Any, LipstreamError | None]:
    """Return a value, or the error: Ray would wrap one that is raised."""
    try:
        return call(), None
    except LipstreamError as error:
        return None, error


class Cluster:
    """Actors of a Ray cluster that do tasks; a context manager that leaves the cluster, and ends its actors.

    model, runtime: as of LipSync.load. cancel: ends what is at work. Raises SettingsError where the cluster cannot be
    reached, or a node has no lipstream of this version.
    """

    def __init__(
        self, cluster: RaySettings, model: str, runtime: RuntimeSettings, cancel: threading.Event | None = None
    ) -> None:
        self._ray, self._cancel = ray_library(), cancel
        self.runtime = runtime
        connect(cluster.address)
        try:
            check_nodes(cluster.address)
            n_actors, resources = actors_of(cluster)
            # Ray starts them again, and what they were at is begun again here, where it can be counted.
            options = {**resources, "max_restarts": -1, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
            remote = self._ray.remote(_Actor).options(**options)
            self._make: Callable[[], Any] = lambda: remote.remote(model, runtime.to_dict())
            self._actors = [self._make() for _ in range(n_actors)]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the actors and leave the cluster."""
        for actor in getattr(self, "_actors", []):
            self._ray.kill(actor)
        self._ray.shutdown()

    def run(self, tasks: Iterator[_Task]) -> Iterator[Finished | None]:
        """Yield what comes of each task, in the order in which they end; None now and then. Raises Cancelled.

        A task is taken when an actor is free for it. One whose actor dies is begun again, by whoever is free.
        """
        at_work: dict[Any, tuple[Any, _Task | None]] = {actor.ready.remote(): (actor, None) for actor in self._actors}
        idle, again, n_deaths, is_exhausted = list[Any](), deque[_Task](), 0, False
        while True:
            raise_if_cancelled(self._cancel)
            while idle:
                task = again.popleft() if again else next(tasks, None)
                if task is None:
                    is_exhausted = True
                    break
                actor = idle.pop()
                at_work[getattr(actor, task.method).remote(*task.arguments)] = actor, task
            if is_exhausted and not again and all(task is None for _, task in at_work.values()):
                return
            for reference in self._ray.wait(list(at_work), timeout=POLL_S)[0]:
                actor, task = at_work.pop(reference)
                try:
                    value, error = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as fault:
                    value, error = None, JobError(f"internal error ({short(fault.cause)})")
                except self._ray.exceptions.RayError as death:
                    n_deaths += 1
                    yield from self._after(death, task, again, n_deaths)
                    actor = self._alive(actor, death)
                    at_work[actor.ready.remote()] = actor, None
                    continue
                n_deaths = 0
                idle.append(actor)
                if task is not None:
                    yield Finished(task.tag, value, error, task.retries)
                elif error is not None:
                    raise error
            yield None

    def _after(self, death: Exception, task: _Task | None, again: deque[_Task], n_deaths: int) -> Iterator[Finished]:
        """Give back the task of an actor that died, unless it was begun too often."""
        if n_deaths > _MOST_DEATHS:
            raise ModelError(f"the cluster's workers keep dying ({short(death)})", fix="see the logs of Ray's workers")
        if task is None:
            time.sleep(POLL_S)
            return
        logger.warning("%s: its worker died (%s); it is begun again", task.tag, type(death).__name__)
        task.retries += 1
        if task.retries <= MAX_RETRIES:
            again.append(task)
            return
        died = ModelError(f"its worker died {task.retries} times ({short(death)})", fix="see the logs of Ray's workers")
        yield Finished(task.tag, None, died, task.retries)

    def _alive(self, actor: Any, death: Exception) -> Any:
        """Return the actor, which Ray starts again, or another where it will not."""
        if not isinstance(death, self._ray.exceptions.ActorDiedError):
            return actor
        new = self._make()
        self._actors = [new if one is actor else one for one in self._actors]
        return new

    # What `segments.Renderers` asks for.

    def call(self, method: str, *arguments: Any, watch: Watch | None = None) -> Any:
        """Return what a method of one actor returns. Raises its error."""
        for finished in self.run(iter([_Task(method, method, arguments)])):
            if finished is not None:
                return finished.result()
            if watch is not None:
                watch.tick()
        raise ModelError("the cluster has not done it", fix="see the logs of Ray's workers")

    def settings_used(self, settings: SyncSettings) -> dict[str, Any]:
        """See LipSync.settings_used."""
        used: dict[str, Any] = self.call("settings_used", settings)
        return used

    def n_frames(self, inputs: Inputs, settings: SyncSettings) -> int:
        """See LipSync.n_frames."""
        return n_output_frames(inputs.speech, Fraction(self.call("frame_rate", inputs.video, settings)))

    def run_key(self, inputs: Inputs, settings: SyncSettings, faces_sha256: str | None) -> str:
        """See LipSync.run_key."""
        return str(self.call("run_key", inputs, settings, faces_sha256))

    def prepare(
        self, inputs: Inputs, settings: SyncSettings, folder: Path, segment_s: float | None, watch: Watch
    ) -> SegmentedRun:
        """See LipSync.prepare. Raises InputError where a node does not see a file."""
        video, speech = inputs.video, inputs.speech
        inputs = Inputs(replace(video, path=video.path.resolve()), replace(speech, path=speech.path.resolve()))
        check_seen([inputs.video.path, inputs.speech.path, folder])
        if not (folder / FACES).exists():
            self._analyse(inputs, settings, watch).save(folder / FACES)
        run: SegmentedRun = self.call("prepare", inputs, settings, folder, segment_s, len(self._actors), watch=watch)
        return run

    def _analyse(self, inputs: Inputs, settings: SyncSettings, watch: Watch) -> FaceTable:
        """Find the faces of the frames that a run needs, in parts of the video."""
        frame_rate = Fraction(self.call("frame_rate", inputs.video, settings))
        n_asked = n_output_frames(inputs.speech, frame_rate)
        frames, first_face, detector = self.call("index_frames", inputs.video, n_asked, settings, watch=watch)
        parts, found = parts_of(len(frames), settings, len(self._actors)), dict[Segment, Found]()
        stored = self._ray.put(frames)
        tasks = (_Task(part, "search", (inputs.video, stored, part, settings, first_face)) for part in parts)
        for finished in self.run(tasks):
            if finished is not None:
                found[finished.tag] = finished.result()
                watch.clocks.detect.count(len(finished.tag))
            watch.tick()
        return table_of(inputs.video, detector, settings, [found[part] for part in parts], frames, n_asked, frame_rate)

    def render(self, run: SegmentedRun, parts: list[list[Segment]], watch: Watch) -> int:
        """Render what is missing, a segment at a time; return how often one was begun again."""
        stored, n_retries = self._ray.put(run), 0
        tasks = (_Task(segment, "render", (stored, [segment])) for part in parts for segment in part)
        for finished in self.run(tasks):
            if finished is not None:
                finished.result()
                n_retries += finished.retries
                watch.clocks.write.count(len(finished.tag))
            watch.tick()
        return n_retries

    def execute(self, work: str | None) -> Execute:
        """Return what does the jobs of a batch, a job at a time; work: see `whole_files`."""

        work = None if work is None else str(Path(work).resolve())

        def done(jobs: Iterator[SyncJob]) -> Iterator[JobResult | None]:
            for finished in self.run(_Task(job, "job", (job, work)) for job in jobs):
                yield None if finished is None else _job_result(finished)

        return done


def _job_result(finished: Finished) -> JobResult:
    if finished.error is not None:
        return JobResult(finished.tag, None, finished.error, 0.0)
    result: JobResult = finished.value
    if result.result is not None and finished.retries:
        return replace(result, result=replace(result.result, retries=finished.retries))
    return result
