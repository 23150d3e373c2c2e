"""`lipstream profile`: a run, and where its time went."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from lipstream.cli import options
from lipstream.cli.console import write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.progress import add_progress_option, reporting
from lipstream.cli.sync import check_paths
from lipstream.models.names import check_model
from lipstream.settings import RuntimeSettings, SyncSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream profile`."""
    parser.add_argument("video", metavar="VIDEO", help="any video file that PyAV reads")
    parser.add_argument("audio", metavar="AUDIO", help="the speech: a sound file, or a video with a sound track")
    parser.add_argument("-o", "--output", default="profile", metavar="DIR", help="folder for the files [profile]")
    parser.add_argument("--layers", action="store_true", help="the U-Net's layers on the trace (slows the run)")
    groups = options.option_groups(parser)
    options.add_sync_options(groups)
    options.add_runtime_options(groups)
    add_progress_option(groups["messages"])
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier profile in DIR")
    parser.add_argument("--json", action="store_true", help="print the stages, or the error, as one JSON object")


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Profile a run, and print where the time went."""
    runtime, settings = options.settings_from(RuntimeSettings, args), options.settings_from(SyncSettings, args)
    check_paths(args.video, args.audio)
    check_model(args.model)
    with reporting(args.progress, quiet=args.quiet) as reporter:
        reporter.status("Starting ...")
        from lipstream.profiling.profile import profile_sync
        from lipstream.runtime.device import torch_device

        reporter.status(f"Loading {args.model} on {torch_device(runtime)} ...")
        report = profile_sync(
            args.video,
            args.audio,
            args.output,
            args.model,
            runtime,
            settings,
            layers=args.layers,
            overwrite=args.overwrite,
            on_progress=reporter.update,
        )
    write_result(json.dumps(asdict(report)) if args.json else f"{report.table()}\n\n{report.summary()}")
    return 0
