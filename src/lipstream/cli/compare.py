"""`lipstream compare`: videos side by side, and the figures as text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lipstream.cli.console import write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.options import option_groups
from lipstream.cli.progress import add_progress_option, reporting
from lipstream.cli.sync import check_paths

if TYPE_CHECKING:
    from lipstream.evaluate.compare import Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream compare`."""
    parser.add_argument("a", metavar="A", help="the original video")
    parser.add_argument("b", metavar="B", help="one made from it; its sound is kept")
    parser.add_argument("c", nargs="?", metavar="C", help="another made from it, measured against B")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("compare.mp4"),
        metavar="OUT",
        help=".mp4, .mov or .mkv; the figures go to its .json, a contact sheet to its .png [compare.mp4]",
    )
    parser.add_argument("--labels", metavar="A,B[,C]", help="[original,lip-synced,optimised]")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, its .json and its .png where they exist")
    parser.add_argument("--json", action="store_true", help="print the figures, or the error, as one JSON object")
    add_progress_option(option_groups(parser)["messages"])


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Compare, and print the figures."""
    names = [args.a, args.b, *([args.c] if args.c else [])]
    check_paths(*names)
    with reporting(args.progress, quiet=args.quiet) as reporter:
        reporter.status("Starting ...")
        from lipstream.evaluate.compare import compare

        videos = [Path(name) for name in names]
        labels = None if args.labels is None else [label.strip() for label in args.labels.split(",")]
        comparison = compare(videos, args.output, labels, overwrite=args.overwrite, on_progress=reporter.update)
    if args.json:
        write_json(comparison.to_dict())
    else:
        write_result(_text(comparison))
    return 0


def _text(comparison: Comparison) -> str:
    quality = comparison.quality
    lines = [
        f"{comparison.output}: {comparison.frames} frames, {comparison.duration_s:.2f} s; sheet: {comparison.sheet}"
    ]
    lines += [
        f"{side.path}: {side.frames} frames, {side.frames - comparison.frames} at the end left out"
        for side in comparison.videos
        if side.frames > comparison.frames
    ]
    lines.append(f"{comparison.measured} against {comparison.against}, where {comparison.untouched} was repainted:")
    figures = {
        "PSNR": _figure(quality.psnr_db, "{:.1f} dB"),
        "SSIM": _figure(quality.ssim, "{:.4f}"),
        "inner lips' distance": _figure(quality.landmark_distance, "{:.4f} face heights"),
        "opening's correlation": _figure(quality.opening_correlation, "{:.3f}"),
        "flicker": _figure(quality.flicker, "{:.2f}") + _figure(quality.reference_flicker, " (against {:.2f})"),
        "sharpness": _figure(quality.sharpness, "{:.0f}") + _figure(quality.reference_sharpness, " (against {:.0f})"),
        "step at the edge": _figure(quality.edge_step, "{:.2f}")
        + _figure(quality.reference_edge_step, " (against {:.2f})"),
        "frames without a mouth": str(quality.frames_without_face),
    }
    return "\n".join([*lines, *(f"  {name:22}  {figure}" for name, figure in figures.items())])


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
