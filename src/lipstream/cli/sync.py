"""`lipstream sync` and `lipstream demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lipstream.cli import options
from lipstream.cli.console import write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.progress import Reporter, add_progress_option, reporting
from lipstream.errors import InputError, OutputError, SettingsError
from lipstream.live.avatar_info import is_avatar
from lipstream.models.names import check_model
from lipstream.scale.storage import check_address, fetched, is_address, sent, without_secrets
from lipstream.settings import ALL_DEVICES, RuntimeSettings, SyncSettings

if TYPE_CHECKING:
    from lipstream.media.audio import SpeechInfo
    from lipstream.media.reader import VideoInfo
    from lipstream.results import SyncResult

_DEMONSTRATION = (
    "this is the bundled demonstration model `tiny`; --model latentsync-1.6 or latentsync-1.5 are the published ones"
    " (see `lipstream models list`)"
)


class _FaceOrRecording(options.Store):
    """Stores who is to be followed, or adds who says which recording."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        who, equals, recording = str(values).partition("=")
        if not equals:
            super().__call__(parser, namespace, values, option_string)
            return
        if who in namespace.recordings:
            parser.error(f"argument --face: {who} is named twice")
        namespace.recordings = {**namespace.recordings, who: recording}


def add_sync_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream sync`."""
    groups = options.option_groups(parser)
    parser.add_argument(
        "video",
        metavar="VIDEO",
        help="any video file that PyAV reads, or its address, or what `lipstream prepare` made of one",
    )
    parser.add_argument(
        "audio", metavar="AUDIO", nargs="?", help="the speech: a sound file, or a video with a sound track"
    )
    files = groups["input and output"]
    files.add_argument("-o", "--output", metavar="OUT", help=".mp4, .mov or .mkv [VIDEO's name with -synced, here]")
    files.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    files.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    files.add_argument(
        "--faces", metavar="FILE", help="what `lipstream analyse` found in VIDEO; no face is searched for"
    )
    files.add_argument(
        "--work", metavar="DIR", help="keep what is done there: the same command goes on after the last whole piece"
    )
    files.add_argument("--keep-work", action="store_true", help="leave the folder of --work when OUT is there")
    files.add_argument(
        "--segment",
        type=float,
        metavar="S",
        help="length of what is done at a time with --work or several devices, s [10, less for many devices]",
    )
    files.add_argument(
        "--all-faces",
        action="store_true",
        help="several people, in place of AUDIO: --face WHO=RECORDING for each; the sum of the recordings is its sound",
    )
    options.add_sync_options(groups, {"face": _FaceOrRecording})
    options.add_runtime_options(groups)
    options.add_ray_options(groups)
    options.take_preset_files(parser)
    add_progress_option(groups["messages"])
    parser.set_defaults(model=None, recordings={})


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream demo`."""
    groups = options.option_groups(parser)
    files = groups["input and output"]
    files.add_argument("-o", "--output", default="demo", metavar="DIR", help="folder for the result [demo]")
    files.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    options.add_runtime_options(groups, detector="mediapipe")  # the same picture whatever is installed
    add_progress_option(groups["messages"])
    parser.set_defaults(faces=None, work=None, keep_work=False, segment=None, ray=None)


def run_sync(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Lip-sync a video to a recording."""
    options.apply_preset_file(args)
    settings = options.settings_from(SyncSettings, args)
    options.check_ray_options(args)
    output = args.output or f"{Path(urlsplit(args.video).path).stem}-synced.mp4"
    names = _recordings(args)
    check_paths(*(name for name in (args.video, *names) if not is_address(name)))
    check_address(output, overwrite=args.overwrite)
    with fetched(args.video, *names) as (video, *paths), sent(output, overwrite=args.overwrite) as local:
        speech = dict(zip(args.recordings, paths, strict=True)) if args.recordings else paths[0]
        return _run(args, interrupts, args.model, video, speech, local, settings, args.overwrite, output)


def _recordings(args: argparse.Namespace) -> list[str]:
    """Return the names of the recordings. Raises SettingsError for none, or one that nobody says."""
    for who in args.recordings:
        SyncSettings(face=who)
    if args.recordings:
        if args.audio is not None:
            raise SettingsError("--face WHO=RECORDING goes in place of AUDIO", fix="leave AUDIO out")
        return list(args.recordings.values())
    if args.all_faces:
        raise SettingsError(
            "--all-faces: no recording is named", fix="add --face left=A.wav --face right=B.wav, and leave AUDIO out"
        )
    if args.audio is None:
        raise SettingsError("AUDIO: no recording is named", fix="name it after the video")
    return [args.audio]


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
    output = folder / "lipstream-demo.mp4"
    return _run(args, interrupts, "tiny", sample.VIDEO, sample.SPEECH, output, SyncSettings(), True, str(output))


def _run(
    args: argparse.Namespace,
    interrupts: Interrupts,
    model: str | None,
    video: Path,
    speech: Path | dict[str, Path],
    output: Path,
    settings: SyncSettings,
    overwrite: bool,
    shown_output: str,
) -> int:
    devices = options.devices_from(args)
    runtime = options.settings_from(RuntimeSettings, args)
    if args.keep_work and args.work is None:
        raise SettingsError("--keep-work: there is no folder to keep", fix="name one with --work DIR")
    if args.segment is not None and not 0 < args.segment < 1e6:
        raise SettingsError(f"--segment {args.segment:g}: must be above 0", fix="leave it out for 10 s")
    speeches = [speech] if isinstance(speech, Path) else [*speech.values()]
    check_paths(str(video), *map(str, speeches), *([args.faces] if args.faces else []))
    check_model(model or "tiny")
    # Seconds pass before torch is imported: what PyAV can refuse is refused first.
    from lipstream.media.origin import signing_for
    from lipstream.media.output_file import check_output
    from lipstream.media.reader import probe

    check_output(output, inputs=(video, *speeches), overwrite=overwrite)
    signing_for(runtime, output)
    prepared = is_avatar(video)
    if prepared:
        _check_alone(args, devices)
    picture = video if prepared else probe(video)
    with reporting(args.progress, quiet=args.quiet) as reporter:
        if model is None and not args.quiet:
            reporter.notice(_DEMONSTRATION)
        reporter.status("Starting ...")
        from lipstream.pipeline.file_job import probe_audio

        recording = probe_audio(speech, settings.audio_track)
        result = _sync(
            args,
            interrupts,
            reporter,
            model or "tiny",
            devices,
            runtime,
            picture,
            recording,
            output,
            settings,
            overwrite,
        )
    _show(args, replace(result, output=without_secrets(shown_output)))
    return 0


def _check_alone(args: argparse.Namespace, devices: Sequence[str]) -> None:
    """Refuse options that do not go with a prepared clip. Raises SettingsError."""
    if args.work is not None or args.ray is not None or len(devices) > 1 or devices == (ALL_DEVICES,):
        raise SettingsError(
            "a prepared clip is rendered on one device, from end to end",
            fix="leave out --work, --ray and further devices",
        )


def _sync(
    args: argparse.Namespace,
    interrupts: Interrupts,
    reporter: Reporter,
    model: str,
    devices: Sequence[str],
    runtime: RuntimeSettings,
    picture: VideoInfo | Path,
    speech: SpeechInfo,
    output: Path,
    settings: SyncSettings,
    overwrite: bool,
) -> SyncResult:
    """Run on one device from end to end, or in segments: on several, on a cluster, or kept in a folder."""
    from lipstream.pipeline.file_job import probe_inputs
    from lipstream.runtime.device import torch_device
    from lipstream.scale.devices import each_device, replicas
    from lipstream.scale.segments import OfThisProcess, run_in_segments, work_folder

    common: dict[str, Any] = {
        "faces": args.faces,
        "overwrite": overwrite,
        "on_progress": reporter.update,
        "cancel": interrupts.cancel,
    }
    segments: dict[str, Any] = {"keep_work": args.keep_work, "segment_s": args.segment}
    if args.ray is not None:
        from lipstream.scale.ray import Cluster
        from lipstream.scale.ray_nodes import RaySettings

        reporter.status(f"Joining the cluster at {args.ray} ...")
        asked = RaySettings(args.ray, args.ray_actors, args.ray_gpus)
        inputs = probe_inputs(picture, speech, output, overwrite=overwrite)
        with work_folder(args.work) as work, Cluster(asked, model, runtime, interrupts.cancel) as cluster:
            return run_in_segments(cluster, inputs, output, settings, work, **segments, **common)
    each = each_device(devices, runtime)
    reporter.status(f"Loading {model} on {', '.join(str(torch_device(one)) for one in each)} ...")

    def on_export(graph: str, done: int, n: int) -> None:
        reporter.status(f"Exporting the networks for {runtime.engine}: {graph}, {done + 1} of {n} ...")

    with replicas(model, each, on_export) as syncs:
        if args.work is None and len(syncs) == 1:
            return syncs[0](picture, speech, output, settings, **common)
        inputs = probe_inputs(picture, speech, output, overwrite=overwrite)
        with work_folder(args.work) as work:
            return run_in_segments(OfThisProcess(syncs), inputs, output, settings, work, **segments, **common)


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
        try:
            exists = Path(name).exists()
        except OSError:  # a name that is too long
            exists = False
        if not exists:
            raise InputError("no such file", file=name, fix="check the path")
