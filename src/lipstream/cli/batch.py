"""`lipstream batch`: many clips, one model in memory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipstream.cli import options
from lipstream.cli.console import write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.progress import Reporter, add_progress_option, reporting
from lipstream.errors import SettingsError
from lipstream.models.names import check_model
from lipstream.settings import RuntimeSettings, SyncSettings

if TYPE_CHECKING:
    from lipstream.scale.batch import BatchProgress, Execute

SOME_FAILED = 7
"""Exit code where some jobs failed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream batch`."""
    groups = options.option_groups(parser)
    parser.add_argument("jobs", metavar="JOBS", help="a .toml or .csv list, or a folder of videos and recordings")
    files = groups["input and output"]
    files.add_argument("-o", "--output", required=True, metavar="DIR", help="folder, or s3:// address, for the outputs")
    files.add_argument("--report", metavar="DIR", help="folder for report.json and report.csv [that of -o]")
    files.add_argument("--resume", action="store_true", help="leave out the jobs that an earlier call has done")
    files.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    files.add_argument("--work", metavar="DIR", help="long clips go on there after the last whole piece, as with sync")
    files.add_argument("--json", action="store_true", help="print the report, or the error, as one JSON object")
    options.add_sync_options(groups)
    options.add_runtime_options(groups)
    options.add_ray_options(groups)
    add_progress_option(groups["messages"])


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Do the jobs, and write a report."""
    options.check_ray_options(args)
    settings, devices = options.settings_from(SyncSettings, args), options.devices_from(args)
    runtime = options.settings_from(RuntimeSettings, args)
    check_model(args.model)
    from lipstream.media.c2pa_manifest import signing_from
    from lipstream.scale.job_list import read_jobs
    from lipstream.scale.storage import is_address

    if is_address(args.output) and args.report is None:
        raise SettingsError("-o is an address: the report needs a folder here", fix="name one with --report DIR")
    signing_from(runtime)
    jobs = read_jobs(Path(args.jobs), args.output, settings, overwrite=args.overwrite)
    begun_s, folder = time.perf_counter(), Path(args.report or args.output)
    rows: list[dict[str, Any]] = []
    with reporting(args.progress, quiet=args.quiet) as reporter, ExitStack() as stack:
        reporter.status("Starting ...")
        from lipstream.scale.batch import Journal, refuse_existing, run_batch, write_report

        key = f"{args.model} {replace(runtime, device='auto', threads=None).to_dict()}"
        journal = Journal(folder, key, resume=args.resume)
        refuse_existing(jobs, journal)
        execute = stack.enter_context(_workers(args, devices, runtime, interrupts, reporter))
        try:
            for row in run_batch(jobs, execute, journal, _shown_by(reporter)):
                rows.append(row)
        finally:
            files = write_report(folder, rows, begun_s)
    n_failed = sum(row["state"] == "failed" for row in rows)
    if args.json:
        write_json({"done": len(rows) - n_failed, "failed": n_failed, "report": str(files[0]), "jobs": rows})
    elif not args.quiet:
        write_result(f"{len(rows) - n_failed} of {len(rows)} jobs done, {n_failed} failed: {files[0]}")
    return SOME_FAILED if n_failed else 0


@contextmanager
def _workers(
    args: argparse.Namespace,
    devices: Sequence[str],
    runtime: RuntimeSettings,
    interrupts: Interrupts,
    reporter: Reporter,
) -> Iterator[Execute]:
    """Yield what does the jobs: the devices of this machine, or a cluster."""
    if args.ray is not None:
        from lipstream.scale.ray import Cluster
        from lipstream.scale.ray_nodes import RaySettings

        reporter.status(f"Joining the cluster at {args.ray} ...")
        asked = RaySettings(args.ray, args.ray_actors, args.ray_gpus)
        with Cluster(asked, args.model, runtime, interrupts.cancel) as cluster:
            yield cluster.execute(args.work)
        return
    from lipstream.scale.batch import file_work, in_threads
    from lipstream.scale.devices import each_device, replicas, whole_files

    each = each_device(devices, runtime)
    reporter.status(f"Loading {args.model} ...")
    with replicas(args.model, each) as syncs:
        workers = [file_work(whole_files(sync, args.work, interrupts.cancel)) for sync in syncs]
        yield in_threads(workers, interrupts.cancel)


def _shown_by(reporter: Reporter) -> Callable[[BatchProgress], None]:
    def update(progress: BatchProgress) -> None:
        if progress.last is not None and progress.last["state"] == "failed":
            reporter.notice(f"{progress.last['name']}: {progress.last['error']}")
        reporter.jobs(progress.skipped + progress.done + progress.failed, progress.failed, progress.n_jobs)

    return update
