"""The command line: words to settings to LipSync. The only place that prints."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lipstream import words
from lipstream.allocator import keep_freed_memory
from lipstream.errors import LipstreamError
from lipstream.version import __version__

if TYPE_CHECKING:
    from lipstream.lipsync import Progress, SyncResult
    from lipstream.models.load import VerifiedFile

# torch, diffusers and PyAV take seconds to import: each command imports what it needs, so that words are checked at
# once and --help is quick.

EXIT_FAULT = 1
EXIT_WORDS = 2
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_WORDS, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see lipstream.errors); errors are one line on stderr."""
    given = list(sys.argv[1:] if argv is None else argv)
    make_own = _OWN_PARSERS.get(given[0]) if given else None
    args = make_own().parse_args(given[1:]) if make_own else _parser().parse_args(given)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.WARNING, format="lipstream: %(levelname)s: %(message)s"
    )
    keep_freed_memory()
    try:
        with _terminable():
            return int(args.command(args))
    except LipstreamError as error:
        return _fail(args, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(args, "interrupted; no half-written file stays behind", EXIT_INTERRUPTED)
    except Exception as error:  # noqa: BLE001  (the last resort: a fault of ours)
        return _fail(
            args,
            f"a fault in lipstream ({type(error).__name__}: {error}); run again with --debug",
            EXIT_FAULT,
        )


def _fail(args: argparse.Namespace, message: str, exit_code: int) -> int:
    if args.debug:
        traceback.print_exc()
    print(f"lipstream: error: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that no half-written file stays behind."""

    def interrupt(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lipstream", description="Repaint a video's mouth so that it says a recording.")
    parser.add_argument("--version", action="version", version=f"lipstream {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    sync = _command(commands, "sync", _sync, "sync a video to a recording")
    sync.add_argument("video", metavar="VIDEO", help="any video file that PyAV reads")
    sync.add_argument("audio", metavar="AUDIO", help="the speech: a sound file, or a video with a sound track")
    sync.add_argument("-o", "--output", metavar="OUT", help=".mp4, .mov or .mkv [VIDEO's name with -synced, here]")
    words.add_sync(sync)
    words.add_runtime(sync)
    sync.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    sync.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")

    demo = _command(commands, "demo", _demo, "the bundled sample with the bundled model, no network")
    demo.add_argument("-o", "--output", default="demo", metavar="DIR", help="folder for the result [demo]")
    words.add_runtime(demo, detector="mediapipe")  # auto might fetch InsightFace's models
    demo.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")

    models = _command(commands, "models", _models_list, "the models: list, download, verify, quantize")
    actions = models.add_subparsers(metavar="list|download|verify|quantize")
    _command(actions, "list", _models_list, "what there is, and what is on this machine")
    download = _command(
        actions, "download", _models_download, "fetch a model from the hub, or go on where it broke off"
    )
    download.add_argument("model", metavar="NAME")
    verify = _command(actions, "verify", _models_verify, "check that a model's files are whole and safe to load")
    verify.add_argument("model", nargs="?", default="tiny", metavar="NAME|FOLDER")
    quantize = _command(actions, "quantize", _models_quantize, "write a model's folder anew with int8 weights")
    quantize.add_argument("model", metavar="NAME|FOLDER")
    quantize.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="must not exist yet")

    commands.add_parser("profile", help="where a sync's time goes: stages, calls, a trace (see docs/measuring.md)")
    commands.add_parser("bench", help="speed, memory and quality of settings against one another")
    commands.add_parser("compare", help="videos side by side, labelled, with how far one is from the other")
    commands.add_parser("prune", help="which layers a model can spare, measured on a clip (see docs/pruning.md)")
    commands.add_parser("train", help="make a model: data, vae, unet, finish, bundle (see docs/training.md)")

    doctor = _command(commands, "doctor", _doctor, "what this machine has and what is missing, with the mend")
    doctor.add_argument("--json", action="store_true", help="print the findings as one JSON object on stdout")
    return parser


def _train_parser() -> argparse.ArgumentParser:
    from lipstream.train import cli as train_cli

    parser = _Parser(prog="lipstream train", description="Make a model from clips of your own; see docs/training.md.")
    train_cli.add_arguments(parser.add_subparsers(required=True, metavar="data|vae|unet|finish|bundle"))
    return _finished(parser, _train)


def _profile_parser() -> argparse.ArgumentParser:
    from lipstream.measure import cli as measure_cli

    parser = _Parser(prog="lipstream profile", description="Sync, and tell where the time goes; see docs/measuring.md.")
    measure_cli.add_profile_arguments(parser)
    return _finished(parser, _profile)


def _bench_parser() -> argparse.ArgumentParser:
    from lipstream.measure import cli as measure_cli

    parser = _Parser(prog="lipstream bench", description="Run settings against one another; see docs/measuring.md.")
    measure_cli.add_bench_arguments(parser)
    return _finished(parser, _bench)


def _compare_parser() -> argparse.ArgumentParser:
    from lipstream.measure import compare_cli

    parser = _Parser(prog="lipstream compare", description="Videos side by side, and how far one is from the other.")
    compare_cli.add_arguments(parser)
    return _finished(parser, _compare)


def _prune_parser() -> argparse.ArgumentParser:
    from lipstream.measure import cli as measure_cli

    parser = _Parser(prog="lipstream prune", description="List layers to leave out; see docs/pruning.md.")
    measure_cli.add_prune_arguments(parser)
    return _finished(parser, _prune)


# Commands of folders that are imported only when they are called.
_OWN_PARSERS = {
    "train": _train_parser,
    "profile": _profile_parser,
    "bench": _bench_parser,
    "compare": _compare_parser,
    "prune": _prune_parser,
}


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
    return _finished(commands.add_parser(name, help=help, description=help), run)


def _finished(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser.add_argument("--debug", action="store_true", help="tell more, and show a traceback with an error")
    parser.set_defaults(command=run)
    return parser


def _sync(args: argparse.Namespace) -> int:
    output = args.output or f"{Path(args.video).stem}-synced.mp4"
    result = _run(args, args.model, args.video, args.audio, output, words.sync_settings(args), overwrite=args.overwrite)
    return _tell(args, result)


def _demo(args: argparse.Namespace) -> int:
    from lipstream import sample
    from lipstream.errors import OutputError
    from lipstream.settings import SyncSettings

    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made a folder ({error.strerror}); choose another with -o") from error
    output = str(folder / "lipstream-demo.mp4")
    return _tell(args, _run(args, "tiny", sample.VIDEO, sample.SPEECH, output, SyncSettings(), overwrite=True))


def _run(
    args: argparse.Namespace,
    model: str,
    video: Any,
    speech: Any,
    output: str,
    settings: Any,
    *,
    overwrite: bool,
) -> SyncResult:
    from lipstream.lipsync import LipSync, check_files

    check_files(video, speech, output, overwrite=overwrite)  # before the model is loaded, or downloaded
    sync = LipSync.load(model, **words.runtime(args))
    with _progress() as on_progress:
        return sync(video, speech, output, settings, overwrite=overwrite, on_progress=on_progress)


def _tell(args: argparse.Namespace, result: SyncResult) -> int:
    if args.json:
        print(json.dumps(result.to_dict()))
        return 0
    untouched = f", {result.frames_without} without a face left as they were" if result.frames_without else ""
    print(
        f"{result.output}: {result.frames} frames, {result.duration_s:.2f} s, in {result.wall_s:.1f} s"
        f" (real-time factor {result.real_time_factor:.2f}){untouched}"
    )
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None] | None]:
    """A bar a stage with frames, rate and time left, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: Progress) -> None:
            for stage in progress.stages:
                if stage.name not in tasks:
                    tasks[stage.name] = bars.add_task(stage.name, total=progress.n_frames, rate="")
                task = tasks[stage.name]
                speed = bars.tasks[task].speed
                bars.update(task, completed=stage.frames, rate=f"{speed:.1f} frames/s" if speed else "")

        yield show


def _models_list(args: argparse.Namespace) -> int:
    from lipstream.models.load import describe_models

    for model in describe_models():
        print(f"{model.name:15} {model.resolution:4} px   {model.place}")
    return 0


def _models_download(args: argparse.Namespace) -> int:
    from lipstream.models.load import download_model

    folder = download_model(args.model, announce=lambda line: print(line, file=sys.stderr))
    print(f"{args.model}: {folder}")
    return 0


def _models_verify(args: argparse.Namespace) -> int:
    from lipstream.models.load import verify_model

    return _tell_files(verify_model(args.model))


def _models_quantize(args: argparse.Namespace) -> int:
    from lipstream.models.quantize import write_quantized

    return _tell_files(write_quantized(args.model, args.output))


def _tell_files(files: Sequence[VerifiedFile]) -> int:
    for file in files:
        print(f"ok  {file.tensors:5} tensors  {file.size_bytes / 1e6:8.1f} MB  {file.path}")
    return 0


def _train(args: argparse.Namespace) -> int:
    from lipstream.train import cli as train_cli

    train_cli.run(args, lambda line: print(line, file=sys.stderr))
    return 0


def _profile(args: argparse.Namespace) -> int:
    from lipstream.measure import cli as measure_cli

    with _progress() as on_progress:
        told = measure_cli.run_profile(args, on_progress)
    print(told)
    return 0


def _bench(args: argparse.Namespace) -> int:
    from lipstream.measure import cli as measure_cli

    print(measure_cli.run_bench(args, lambda line: print(line, file=sys.stderr)))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from lipstream.measure import compare_cli

    with _progress() as on_progress:
        told = compare_cli.run(args, on_progress)
    print(told)
    return 0


def _prune(args: argparse.Namespace) -> int:
    from lipstream.measure import cli as measure_cli

    print(measure_cli.run_prune(args, lambda line: print(line, file=sys.stderr)))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from lipstream.doctor import examine

    findings = examine()
    if args.json:
        print(json.dumps({finding.name: {"ok": finding.ok, "detail": finding.detail} for finding in findings}))
    else:
        for finding in findings:
            print(f"{'ok ' if finding.ok else '-- '} {finding.name:14} {finding.detail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
