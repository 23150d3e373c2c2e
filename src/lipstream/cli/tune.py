"""`lipstream tune`: find the fastest settings for a clip that keep its quality."""

from __future__ import annotations

import argparse
from pathlib import Path

from lipstream.cli import options
from lipstream.cli.console import say, write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.sync import check_paths
from lipstream.errors import SettingsError
from lipstream.models.names import check_model
from lipstream.settings import EngineName, RuntimeSettings, SyncSettings
from lipstream.validation import choices

_TRIALS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream tune`."""
    parser.add_argument("video", metavar="VIDEO", help="a clip of the kind that the settings are for")
    parser.add_argument("audio", metavar="AUDIO", help="the speech: a sound file, or a video with a sound track")
    parser.add_argument(
        "--floor",
        action="append",
        default=[],
        metavar="MEASURE=VALUE",
        help="how good a measure has to stay; MEASURE=+VALUE: by how much it may be worse than the published"
        " behaviour's; repeatable [ssim=0.95]",
    )
    parser.add_argument("--trials", type=int, metavar="N", help=f"trials in all, earlier calls' too [{_TRIALS}]")
    parser.add_argument("--minutes", type=float, metavar="M", help="end the search after M minutes")
    parser.add_argument("--seconds", type=float, metavar="S", help="use the first S seconds of the speech [all]")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="turns of the finalists [3]")
    parser.add_argument(
        "--engines", default="torch", metavar="A[,B ...]", help="engines to choose from, exported before [torch]"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("preset.toml"),
        metavar="TOML",
        help="the trials go to its .csv, a plot to its .png, the study, which the next call goes on with, to its .db"
        " [preset.toml]",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the preset, its table and its plot")
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    groups = options.option_groups(parser)
    options.add_sync_options(groups)
    options.add_runtime_options(groups, detector="mediapipe")  # the same result whatever is installed


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Tune, and print the Pareto front. Options of sync that are given are not searched."""
    from lipstream.tune.floors import DEFAULT, parse_floors

    floors = parse_floors(args.floor or [DEFAULT])
    sync, runtime = options.settings_from(SyncSettings, args), options.settings_from(RuntimeSettings, args)
    n_trials = _TRIALS if args.trials is None and args.minutes is None else args.trials
    engines = tuple(args.engines.split(","))
    for name in engines:
        if name not in choices(EngineName):
            raise SettingsError(f"engines {name!r}: not an engine", fix=f"use {', '.join(choices(EngineName))}")
    check_paths(args.video, args.audio)
    check_model(args.model)
    from lipstream.tune.space import Candidate
    from lipstream.tune.tune import TuneSettings, check_outputs, tune

    settings = TuneSettings(
        model=args.model,
        video=Path(args.video),
        speech=Path(args.audio),
        output=args.output,
        floors=floors,
        base=Candidate(sync, runtime),
        fixed=options.given(args),
        engines=engines,
        n_trials=n_trials,
        limit_s=None if args.minutes is None else 60 * args.minutes,
        duration_s=args.seconds,
        repeats=args.repeats,
    )
    check_outputs(args.output, inputs=[settings.video, settings.speech], overwrite=args.overwrite)
    tuned = tune(settings, (lambda message: None) if args.quiet else lambda message: say(f"lipstream: {message}"))
    if args.json:
        preset = tuned.preset
        found = {"sync": dict(preset.sync), "runtime": dict(preset.runtime), "measured": dict(preset.measured)}
        write_json({"preset": str(args.output), "model": preset.model, **found, "trials": len(tuned.trials)})
    else:
        write_result(f"{tuned.text()} times as fast\n{args.output}")
    return 0
