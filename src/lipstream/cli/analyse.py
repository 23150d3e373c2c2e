"""`lipstream analyse`: the face in every frame of a video, once for many speeches."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

from lipstream.cli import options
from lipstream.cli.console import write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.progress import add_progress_option, reporting
from lipstream.cli.sync import check_paths, frames_of
from lipstream.scale.storage import fetched, is_address
from lipstream.settings import RuntimeSettings, SyncSettings

_SYNC_FIELDS = ("preset", "detect_every", "frame_rate", "deinterlace", "tracking")
_RUNTIME_FIELDS = ("device", "detector", "threads", "frame_memory_mb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream analyse`."""
    groups = options.option_groups(parser)
    parser.add_argument("video", metavar="VIDEO", help="any video file that PyAV reads")
    files = groups["input and output"]
    files.add_argument(
        "-o", "--output", metavar="FILE", help="the table, for sync --faces [VIDEO's name with .faces, here]"
    )
    files.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    files.add_argument("--json", action="store_true", help="print what was found, or the error, as one JSON object")
    options.add_fields(groups, SyncSettings, _SYNC_FIELDS)
    options.add_fields(groups, RuntimeSettings, _RUNTIME_FIELDS)
    add_progress_option(groups["messages"])
    given = {*_SYNC_FIELDS, *_RUNTIME_FIELDS}
    others = [f for record in (SyncSettings, RuntimeSettings) for f in fields(record) if f.name not in given]
    parser.set_defaults(**{f.name: f.default for f in others})


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Find the faces of a video, and write them."""
    settings, runtime = options.settings_from(SyncSettings, args), options.settings_from(RuntimeSettings, args)
    if not is_address(args.video):
        check_paths(args.video)
    from lipstream.media.atomic import check_beside
    from lipstream.media.reader import probe

    output = Path(args.output or f"{Path(urlsplit(args.video).path).stem}.faces")
    check_beside(output, inputs=[Path(args.video)], overwrite=args.overwrite)
    with reporting(args.progress, quiet=args.quiet) as reporter, fetched(args.video) as (video,):
        picture = probe(video)
        reporter.status("Starting ...")
        from lipstream.lipsync import LipSync

        with LipSync.load("tiny", runtime) as sync:  # the table serves every model
            table = sync.analyse(picture, settings, on_progress=reporter.update, cancel=interrupts.cancel)
        table.save(output, overwrite=args.overwrite)
    with_face = int(table.shows_face(len(table)).sum())
    if args.json:
        faces = {"frames_with_face": with_face, "frames_without": len(table) - with_face}
        write_json({"output": str(output), "frames": len(table), "faces": faces, "detector": table.detector})
    elif not args.quiet:
        write_result(f"{output}: {frames_of(len(table))}, {with_face} with a face, found by {table.detector}")
    return 0
