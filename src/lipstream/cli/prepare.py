"""`lipstream prepare`: all of a video that does not depend on the speech, once for many speeches and for live ones."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from lipstream.cli import options
from lipstream.cli.console import write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.progress import add_progress_option, reporting
from lipstream.cli.sync import check_paths, frames_of
from lipstream.models.names import check_model
from lipstream.settings import RuntimeSettings, SyncSettings

_SYNC_FIELDS = (
    "preset",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "resolution",
    "seed",
    "frame_rate",
    "deinterlace",
    "face",
    "tracking",
    "detect_every",
    "texture",
    "match_color",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream prepare`."""
    groups = options.option_groups(parser)
    parser.add_argument("video", metavar="VIDEO", help="any video file that PyAV reads")
    files = groups["input and output"]
    files.add_argument("-o", "--output", metavar="AVATAR", help="the prepared clip [VIDEO's name with .avatar, here]")
    files.add_argument("--overwrite", action="store_true", help="replace AVATAR where it exists")
    files.add_argument("--json", action="store_true", help="print what was made, or the error, as one JSON object")
    groups["quality"].add_argument(
        "--model", default="tiny", metavar="NAME|FOLDER", help="see `lipstream models list` [tiny]"
    )
    options.add_fields(groups, SyncSettings, _SYNC_FIELDS)
    options.add_fields(groups, RuntimeSettings, [f.name for f in fields(RuntimeSettings) if "c2pa" not in f.name])
    add_progress_option(groups["messages"])
    others = {f.name: f.default for record in (SyncSettings, RuntimeSettings) for f in fields(record)}
    given = {action.dest for action in parser._actions}
    parser.set_defaults(**{name: default for name, default in others.items() if name not in given})


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Prepare a video, and write what was made of it."""
    settings, runtime = options.settings_from(SyncSettings, args), options.settings_from(RuntimeSettings, args)
    check_paths(args.video)
    check_model(args.model)
    from lipstream.media.atomic import check_beside
    from lipstream.media.reader import probe

    output = Path(args.output or f"{Path(args.video).stem}.avatar")
    check_beside(output, inputs=[Path(args.video)], overwrite=args.overwrite)
    with reporting(args.progress, quiet=args.quiet) as reporter:
        picture = probe(args.video)
        reporter.status("Starting ...")
        from lipstream.lipsync import LipSync

        with LipSync.load(args.model, runtime) as sync:
            avatar = sync.prepare_avatar(
                picture,
                output,
                settings,
                overwrite=args.overwrite,
                on_progress=reporter.update,
                cancel=interrupts.cancel,
            )
    with_face = sum(map(avatar.has_face, range(avatar.n_frames)))
    size_bytes = output.stat().st_size
    if args.json:
        faces = {"frames_with_face": with_face, "frames_without": avatar.n_frames - with_face}
        write_json(
            {
                "output": str(output),
                "model": avatar.model,
                "frames": avatar.n_frames,
                "faces": faces,
                "loop": avatar.info.loop,
                "size_bytes": size_bytes,
            }
        )
    elif not args.quiet:
        made = f"{frames_of(avatar.n_frames)}, {with_face} with a face, for {avatar.model}, {size_bytes / 1e6:.1f} MB"
        write_result(f"{output}: {made}")
    return 0
