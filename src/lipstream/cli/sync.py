"""`lipstream sync` and `lipstream demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lipstream.cli import options
from lipstream.cli.console import write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.progress import add_progress_option, reporting
from lipstream.errors import InputError, OutputError
from lipstream.models.names import check_model
from lipstream.settings import RuntimeSettings, SyncSettings

if TYPE_CHECKING:
    from lipstream.results import SyncResult

_DEMONSTRATION = (
    "this is the bundled demonstration model `tiny`; --model latentsync-1.6 or latentsync-1.5 are the published ones"
    " (see `lipstream models list`)"
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
    options.take_preset_files(parser)
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
    options.apply_preset_file(args)
    settings = options.settings_from(SyncSettings, args)
    output = args.output or f"{Path(args.video).stem}-synced.mp4"
    return _run(args, interrupts, args.model, args.video, args.audio, output, settings, args.overwrite)


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
    model: str | None,
    video: str,
    speech: str,
    output: str,
    settings: SyncSettings,
    overwrite: bool,
) -> int:
    runtime = options.settings_from(RuntimeSettings, args)
    check_paths(video, speech)
    check_model(model or "tiny")
    # Seconds pass before torch is imported: what PyAV can refuse is refused first.
    from lipstream.media.reader import probe
    from lipstream.media.writer import check_output

    check_output(output, inputs=(video, speech), overwrite=overwrite)
    picture = probe(video)
    with reporting(args.progress, quiet=args.quiet) as reporter:
        if model is None and not args.quiet:
            reporter.notice(_DEMONSTRATION)
        reporter.status("Starting ...")
        from lipstream.lipsync import LipSync
        from lipstream.pipeline.file_job import probe_inputs
        from lipstream.runtime.device import torch_device

        inputs = probe_inputs(picture, speech, output, overwrite=overwrite)
        reporter.status(f"Loading {model or 'tiny'} on {torch_device(runtime)} ...")

        def on_export(graph: str, done: int, n: int) -> None:
            reporter.status(f"Exporting the networks for {runtime.engine}: {graph}, {done + 1} of {n} ...")

        with LipSync.load(model or "tiny", runtime, on_export=on_export) as sync:
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


def check_paths(*inputs: str) -> None:
    """Refuse what is certainly no file before anything slow is imported. Raises InputError."""
    for name in inputs:
        if "://" in name:
            raise InputError("addresses are not read", file=name, fix="download it and name the file")
        if not Path(name).exists():
            raise InputError("no such file", file=name, fix="check the path")
