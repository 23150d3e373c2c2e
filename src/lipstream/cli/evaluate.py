"""`lipstream evaluate`: score videos, ours or another system's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lipstream.cli.console import write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.options import option_groups
from lipstream.cli.progress import add_progress_option, reporting
from lipstream.cli.sync import check_paths
from lipstream.errors import SettingsError
from lipstream.settings import RuntimeSettings

if TYPE_CHECKING:
    from lipstream.evaluate.score import ClipFiles
    from lipstream.evaluate.summary import Report

SOME_FAILED = 7
"""Exit code where clips of a folder could not be scored."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream evaluate`."""
    groups = option_groups(parser)
    parser.add_argument("video", nargs="?", metavar="VIDEO", help="the video to score")
    parser.add_argument("--folder", metavar="DIR", help="score every video in it; the options below name folders then")
    files = groups["input and output"]
    files.add_argument("--reference", metavar="TRUTH", help="the true video of the same speech, frame for frame")
    files.add_argument("--source", metavar="SOURCE", help="the video that VIDEO was made from, for leakage")
    files.add_argument("--speech", metavar="AUDIO", help="what the mouth should say [VIDEO's own sound]")
    files.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("evaluation.json"),
        metavar="JSON",
        help="rows go to its .csv, a page of plots to its .png [evaluation.json]",
    )
    files.add_argument("--overwrite", action="store_true", help="replace these three where they exist")
    files.add_argument("--json", action="store_true", help="print the report, or the error, as one JSON object")
    hardware = groups["hardware"]
    hardware.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:N]|mps", help="for networks [auto]")
    hardware.add_argument("--detector", default="mediapipe", help="what finds the face [mediapipe]")
    hardware.add_argument(
        "--syncnet", type=Path, metavar="FILE", help="the published syncnet_v2.model [the hub's cache]"
    )
    hardware.add_argument(
        "--networks", type=Path, metavar="DIR", help="TorchScript of LPIPS, FID and FVD (see docs/quality.md)"
    )
    add_progress_option(groups["messages"])


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Score, write the files and print the means."""
    if (args.video is None) == (args.folder is None):
        raise SettingsError("name either VIDEO or --folder DIR", fix="see lipstream evaluate --help")
    named = [name for name in (args.video, args.folder, args.reference, args.source, args.speech) if name]
    check_paths(*named)
    runtime = RuntimeSettings(device=args.device, detector=args.detector)
    with reporting(args.progress, quiet=args.quiet) as reporter:
        reporter.status("Starting ...")
        from lipstream.evaluate.evaluate import check_outputs, evaluate, write

        clips = _clips(args)
        paths = check_outputs(args.output, inputs=[Path(name) for name in named], overwrite=args.overwrite)
        report = evaluate(
            clips,
            runtime,
            syncnet=args.syncnet,
            networks=args.networks,
            on_clip=reporter.status,
            on_progress=reporter.update,
            on_report=lambda report: write(report, paths),
        )
    _show(args, report, paths)
    return SOME_FAILED if report.failures else 0


def _clips(args: argparse.Namespace) -> list[ClipFiles]:
    from lipstream.evaluate.evaluate import clips_of
    from lipstream.evaluate.score import ClipFiles

    reference, source, speech = (_path(name) for name in (args.reference, args.source, args.speech))
    if args.folder is not None:
        return clips_of(Path(args.folder), reference, source, speech)
    return [ClipFiles(Path(args.video), reference, source, speech)]


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _show(args: argparse.Namespace, report: Report, paths: tuple[Path, ...]) -> None:
    if args.json:
        write_json(report.to_dict())
    elif not args.quiet:
        from lipstream.evaluate.summary import table

        write_result(f"{table(report)}\n{', '.join(map(str, paths))}")
