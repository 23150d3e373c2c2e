"""Metrics for Prometheus: what the database knows of all machines, and this process's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select

from lipstream.serve.render import resident_bytes
from lipstream.serve.service import Service
from lipstream.serve.states import State
from lipstream.serve.tables import jobs, totals

_COUNTERS = {
    "jobs_ended": ("lipstream_jobs_ended", "jobs that workers have ended", "state"),
    "stage_seconds": ("lipstream_stage_seconds", "busy seconds of the stages, summed over their threads", "stage"),
    "frames": ("lipstream_frames", "frames of finished results", None),
    "wall_seconds": ("lipstream_wall_seconds", "time that finished jobs took", None),
    "errors": ("lipstream_errors", "failed jobs by what failed", "kind"),
    "leases_lapsed": ("lipstream_leases_lapsed", "jobs that went back to the queue since a worker fell silent", None),
}


def exposition(service: Service) -> bytes:
    """Return all metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        with self._service.database.reading() as connection:
            yield from _of_jobs(connection)
            yield from _of_totals(connection)
        workers = self._service.workers()
        yield GaugeMetricFamily("lipstream_workers", "workers seen lately", len(workers))
        memory = GaugeMetricFamily(
            "lipstream_device_memory_bytes", "memory taken of a worker's device, or by its process on a CPU",
            labels=("worker", "device"),
        )  # fmt: skip
        for worker in workers:
            memory.add_metric((worker.id, worker.device), worker.memory_bytes)
        yield memory
        yield GaugeMetricFamily("lipstream_process_bytes", "memory of this server's process", resident_bytes())


def _of_jobs(connection: Connection) -> Iterator[Metric]:
    rows = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
    counts: dict[str, int] = {row[0]: row[1] for row in rows}
    yield GaugeMetricFamily("lipstream_queue_length", "jobs that wait", counts.get(State.QUEUED.value, 0))
    states = GaugeMetricFamily("lipstream_jobs", "jobs by state", labels=("state",))
    for state in State:
        states.add_metric((state.value,), counts.get(state.value, 0))
    yield states
    used = connection.scalar(select(func.coalesce(func.sum(jobs.c.file_bytes), 0)))
    yield GaugeMetricFamily(
        "lipstream_file_bytes", "uploads and results, with room for results to come", float(used or 0)
    )


def _of_totals(connection: Connection) -> Iterator[Metric]:
    rows = connection.execute(select(totals)).mappings().all()
    for name, (metric, help, label) in _COUNTERS.items():
        family = CounterMetricFamily(metric, help, labels=() if label is None else (label,))
        mine = [row for row in rows if row["name"] == name]
        for row in mine:
            family.add_metric(() if label is None else (row["label"],), row["value"])
        if label is None and not mine:
            family.add_metric((), 0)
        yield family
