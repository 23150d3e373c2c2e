"""`lipstream compare`: words to what compare.py does, and its figures as text. Prints nothing itself."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipstream.lipsync import Progress
    from lipstream.measure.compare import Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the words of `lipstream compare`."""
    parser.add_argument("a", type=Path, metavar="A", help="the original video")
    parser.add_argument("b", type=Path, metavar="B", help="one made from it; its sound is kept")
    parser.add_argument("c", type=Path, nargs="?", metavar="C", help="another made from it, measured against B")
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
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on stdout")


def run(args: argparse.Namespace, on_progress: Callable[[Progress], None] | None) -> str:
    """Carry out `lipstream compare`; what to print. Raises LipstreamError."""
    from lipstream.measure.compare import compare

    videos = [args.a, args.b, *([args.c] if args.c else [])]
    labels = None if args.labels is None else [label.strip() for label in args.labels.split(",")]
    done = compare(videos, args.output, labels, overwrite=args.overwrite, on_progress=on_progress)
    return json.dumps(done.to_dict()) if args.json else _text(done)


def _text(done: Comparison) -> str:
    quality = done.quality
    lines = [f"{done.output}: {done.frames} frames, {done.duration_s:.2f} s; sheet: {done.sheet}"]
    lines += [
        f"{side.path}: {side.frames} frames, {side.frames - done.frames} at the end left out"
        for side in done.videos
        if side.frames > done.frames
    ]
    lines.append(f"{done.measured} against {done.against}, where {done.untouched} was repainted:")
    figures = {
        "PSNR": _figure(quality.psnr_db, "{:.1f} dB"),
        "SSIM": _figure(quality.ssim, "{:.4f}"),
        "inner lips' distance": _figure(quality.landmark_distance, "{:.4f} face heights"),
        "opening's correlation": _figure(quality.opening_correlation, "{:.3f}"),
        "flicker": _figure(quality.flicker, "{:.2f}") + _figure(quality.reference_flicker, " (against {:.2f})"),
        "frames without a mouth": str(quality.frames_without_face),
    }
    return "\n".join([*lines, *(f"  {name:22}  {figure}" for name, figure in figures.items())])


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
