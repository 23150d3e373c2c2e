"""`lipstream sync` and `lipstream demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lipstream.cli import options
from lipstream.cli.console import say, write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.progress import add_progress_option, reporting
from lipstream.errors import InputError, OutputError
from lipstream.models.names import check_model
from lipstream.settings import RuntimeSettings, SyncSettings

if TYPE_CHECKING:
    from lipstream.results import SyncResult

_DEMONSTRATION = (
    "lipstream: this is the bundled demonstration model `tiny`; --model latentsync-1.6 or latentsync-1.5 are the"
    " published ones (see `lipstream models list`)"
)


def add_sync_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream sync`."""
    groups = options.option_groups(parser)
    parser.add_argument("video", metavar="VIDEO", help="any video file that PyAV reads")
    parser.add_argument("audio", metavar="AUDIO", help="the speech: a sound file, or a video with a sound track")
    files = groups["input and output"]
    files.add_argument("-o", "--output", metavar="OUT", help=".mp4, .mov or .mkv [VIDEO's name with -synced, here]")
    files.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    files.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    options.add_sync_options(groups)
    options.add_runtime_options(groups)
    add_progress_option(groups["messages"])
    parser.set_defaults(model=None)


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream demo`."""
    groups = options.option_groups(parser)
    files = groups["input and output"]
    files.add_argument("-o", "--output", default="demo", metavar="DIR", help="folder for the result [demo]")
    files.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    options.add_runtime_options(groups, detector="mediapipe")  # the same picture whatever is installed
    add_progress_option(groups["messages"])


def run_sync(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Lip-sync a video to a recording."""
    settings = options.settings_from(SyncSettings, args)
    output = args.output or f"{Path(args.video).stem}-synced.mp4"
    if args.model is None and not args.quiet:
        say(_DEMONSTRATION)
    return _run(args, interrupts, args.model or "tiny", args.video, args.audio, output, settings, args.overwrite)


def run_demo(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Lip-sync the bundled sample with the bundled model."""
    from lipstream.bundled import sample

    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot be made a folder ({error.strerror})", file=folder, fix="choose another one with -o"
        ) from error
    output = str(folder / "lipstream-demo.mp4")
    return _run(args, interrupts, "tiny", str(sample.VIDEO), str(sample.SPEECH), output, SyncSettings(), True)


def _run(
    args: argparse.Namespace,
    interrupts: Interrupts,
    model: str,
    video: str,
    speech: str,
    output: str,
    settings: SyncSettings,
    overwrite: bool,
) -> int:
    runtime = options.settings_from(RuntimeSettings, args)
    check_inputs(video, speech)
    check_model(model)
    check_absent(output, (video, speech), overwrite=overwrite)
    with reporting(args.progress, quiet=args.quiet) as reporter:
        reporter.status("Starting ...")
        from lipstream.lipsync import LipSync
        from lipstream.pipeline.file_job import probe_inputs
        from lipstream.runtime.device import torch_device

        inputs = probe_inputs(video, speech, output, overwrite=overwrite)
        reporter.status(f"Loading {model} on {torch_device(runtime)} ...")
        with LipSync.load(model, runtime) as sync:
            result = sync(
                inputs.video,
                inputs.speech,
                output,
                settings,
                overwrite=overwrite,
                on_progress=reporter.update,
                cancel=interrupts.cancel,
            )
    _show(args, result)
    return 0


def _show(args: argparse.Namespace, result: SyncResult) -> None:
    if args.json:
        write_json(result.to_dict())
    elif not args.quiet:
        unchanged = f", {frames_of(result.frames_without)} without a face unchanged" if result.frames_without else ""
        write_result(
            f"{result.output}: {frames_of(result.frames)}, {result.duration_s:.2f} s, in {result.wall_s:.1f} s"
            f" (real-time factor {result.real_time_factor:.2f}){unchanged}"
        )


def frames_of(n: int) -> str:
    """Return a number of frames in words."""
    return f"{n} frame" if n == 1 else f"{n} frames"


def check_inputs(video: str, speech: str) -> None:
    """Refuse what is certainly no input before anything slow is imported. Raises InputError."""
    for name, noun in ((video, "video"), (speech, "recording")):
        if "://" in name:
            raise InputError("addresses are not read", file=name, fix=f"download the {noun} and name the file")
        if not Path(name).exists():
            raise InputError("no such file", file=name, fix=f"check the path of the {noun}")


def check_absent(output: str, inputs: Sequence[str], *, overwrite: bool) -> None:
    """Refuse an output that exists before anything slow is imported. Raises OutputError.

    One that is an input too is left to the writer, which knows links and says so.
    """
    path = Path(output)
    if not overwrite and path.is_file() and not any(path.samefile(name) for name in inputs):
        raise OutputError("already exists", file=output, fix="choose another name, or overwrite it with --overwrite")
