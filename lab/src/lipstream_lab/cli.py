"""`lipstream bench` and `lipstream prune`."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lipstream.cli import options
from lipstream.cli.console import say, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.errors import SettingsError
from lipstream.settings import RuntimeSettings, SyncSettings

if TYPE_CHECKING:
    from lipstream_lab.bench.cases import Setting
    from lipstream_lab.bench.csv_rows import Row

# Options that all settings of a benchmark must share for their images to be comparable.
_SHARED = ("seed", "loop")
_STAGE_DURATION_S = 2.0


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream bench`."""
    parser.add_argument("video", nargs="?", type=Path, metavar="VIDEO", help="[the bundled sample]")
    parser.add_argument("audio", nargs="?", type=Path, metavar="AUDIO", help="[the bundled sample's]")
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar='"NAME: OPTION=VALUE ..."',
        help='a setting to compare, as options of sync: "fast: preset=fast steps=4"; repeatable, the first is the'
        " baseline; the options below apply to all",
    )
    parser.add_argument(
        "--sweep", type=Path, metavar="TOML", help="a list or grid of settings; also plotted next to the CSV"
    )
    parser.add_argument(
        "--stage",
        default="all",
        metavar="align|composite|detect|features|unet|vae|all",
        help="benchmark one stage alone [all]",
    )
    parser.add_argument("--synthetic", metavar="WxH", help="generate a clip of this size instead of VIDEO")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help=f"use the first S seconds of the speech [all; {_STAGE_DURATION_S:g} for one stage]",
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each setting, interleaved [5]")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench.csv"), metavar="CSV", help="[bench.csv]")
    groups = options.option_groups(parser)
    options.add_sync_options(groups)
    options.add_runtime_options(groups, detector="mediapipe")  # the same result whatever is installed
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the plot of an earlier sweep; rows are appended"
    )


def bench(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Compare settings and print the table."""
    write_result(run_bench(args, say))
    return 0


def run_bench(args: argparse.Namespace, report: Callable[[str], None]) -> str:
    """Return the table of `lipstream bench`. report: receives lines of progress. Raises LipstreamError."""
    from lipstream_lab.bench import bench as benchmark
    from lipstream_lab.bench import pareto
    from lipstream_lab.bench.csv_rows import add_to_csv, check_csv

    whole = args.stage == "all" or args.seconds is not None
    settings = benchmark.BenchSettings(
        settings=parse_settings(args),
        stage=args.stage,
        video=args.video,
        speech=args.audio,
        synthetic=_size(args.synthetic) if args.synthetic else None,
        duration_s=args.seconds if whole else _STAGE_DURATION_S,
        repeats=args.repeats,
        skip_failing=args.sweep is not None,
    )
    check_csv(args.output)
    plot = args.output.with_suffix(".png") if args.sweep else None
    if plot is not None:
        pareto.check_plot(plot, inputs=[args.output, args.sweep], overwrite=args.overwrite)
    saved: list[Row] = []

    def save(rows: Sequence[Row]) -> None:
        saved.extend(rows)
        add_to_csv(args.output, rows)
        if plot is not None:
            pareto.draw(saved, plot)
        report(f"{args.output}: {len(saved)} of {len(settings.settings)} rows")

    return _table(benchmark.run(settings, report, save))


def add_prune_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream prune`."""
    parser.add_argument("video", nargs="?", type=Path, metavar="VIDEO", help="clip to measure on [the bundled sample]")
    parser.add_argument("audio", nargs="?", type=Path, metavar="AUDIO", help="[the bundled sample's]")
    parser.add_argument("-o", "--output", type=Path, default=Path("pruned.json"), metavar="LIST", help="[pruned.json]")
    parser.add_argument(
        "--floor",
        type=float,
        default=0.97,
        metavar="SSIM",
        help="lowest acceptable SSIM of the repainted region against the unpruned model [0.97]",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=_STAGE_DURATION_S,
        metavar="S",
        help=f"use the first S seconds of the speech [{_STAGE_DURATION_S:g}]",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="timed runs before and after, interleaved [5]"
    )
    groups = options.option_groups(parser)
    options.add_sync_options(groups)
    options.add_runtime_options(groups, detector="mediapipe")  # the same result whatever is installed
    parser.add_argument("--overwrite", action="store_true", help="replace an existing LIST")


def prune(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Search for layers to drop and print the table."""
    write_result(run_prune(args, say))
    return 0


def run_prune(args: argparse.Namespace, report: Callable[[str], None]) -> str:
    """Return the table of `lipstream prune`. report: receives lines of progress. Raises LipstreamError."""
    from lipstream_lab.bench.cases import Setting
    from lipstream_lab.prune import search

    runtime = options.settings_from(RuntimeSettings, args)
    settings = search.PruneSettings(
        setting=Setting("unpruned", "", args.model, options.settings_from(SyncSettings, args), runtime),
        floor=args.floor,
        video=args.video,
        speech=args.audio,
        duration_s=args.seconds,
        repeats=args.repeats,
    )
    search.check_list(args.output, overwrite=args.overwrite)
    pruned = search.search(settings, report)
    pruned.prune_list.write(args.output)
    return f"{search.table(pruned)}\n{args.output}"


def parse_settings(args: argparse.Namespace) -> tuple[Setting, ...]:
    """Return the settings to compare: each --setting or each of a sweep, on top of the shared options.

    Raises SettingsError, and InputError if a sweep cannot be read.
    """
    from lipstream_lab.bench.sweep import read_sweep

    if args.sweep and args.setting:
        raise SettingsError("a benchmark takes --setting or --sweep, not both", fix="add the settings to the sweep")
    named = read_sweep(args.sweep) if args.sweep else [_split(text) for text in args.setting or ["as given:"]]
    settings = tuple(_setting(name, text, args) for name, text in named)
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"setting {name!r}: two settings have this name", fix="give each its own")
    return settings


def _split(text: str) -> tuple[str, list[str]]:
    """Split a --setting into its name and options."""
    head, colon, tail = text.partition(":")
    name, options = (head.strip(), tail.strip()) if colon and "=" not in head else (text.strip(), text.strip())
    if not name:
        raise SettingsError(f"setting {text!r} has no name", fix='write "NAME: OPTION=VALUE ..."')
    try:
        return name, shlex.split(options)
    except ValueError as error:  # a quote that is not closed
        raise SettingsError(f"setting {name!r}: {error}", fix="close the quote") from error


def _setting(name: str, text: Sequence[str], args: argparse.Namespace) -> Setting:
    from lipstream_lab.bench.cases import Setting

    parser = _SettingParser(name)
    shared = argparse.Namespace(**{key: value for key, value in vars(args).items() if key in parser.known()})
    try:
        chosen = parser.parse_args([_as_option(option) for option in text], shared)
        for key in _SHARED:
            if getattr(chosen, key) != getattr(args, key):
                raise SettingsError(
                    f"{key} differs from the others'", fix=f"give --{key} to the benchmark, for all settings"
                )
        runtime, sync = options.settings_from(RuntimeSettings, chosen), options.settings_from(SyncSettings, chosen)
        return Setting(name, shlex.join(text), chosen.model, sync, runtime)
    except SettingsError as error:
        raise SettingsError(f"setting {name!r}: {error.message}", file=error.file, fix=error.fix) from error


class _SettingParser(argparse.ArgumentParser):
    """Parses the options of a setting as those of sync; raises SettingsError instead of exiting."""

    def __init__(self, name: str) -> None:
        super().__init__(prog=name, add_help=False, allow_abbrev=False)
        groups = options.option_groups(self)
        options.add_sync_options(groups)
        options.add_runtime_options(groups)

    def known(self) -> set[str]:
        return {action.dest for action in self._actions}

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message.replace("--", ""), fix=f"use {', '.join(sorted(self.known()))}")


def _as_option(text: str) -> str:
    name, equals, value = text.partition("=")
    return f"--{name.replace('_', '-')}{equals}{value}"


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise SettingsError(
            f"synthetic = {text!r}: not a size", fix="give WIDTHxHEIGHT, such as 1920x1080", setting="synthetic"
        )
    return int(match[1]), int(match[2])


def _table(rows: list[Row]) -> str:
    width = max(len(row.setting) for row in rows)
    lines = [f"{rows[0].stage}, {rows[0].input}, {rows[0].repeats} turns"]
    for row in rows:
        line = f"{row.setting:{width}}  {row.seconds:.3f} s ({row.seconds_min:.3f} to {row.seconds_max:.3f})"
        line += f"  {row.frames_per_s:.1f} frames/s  real-time factor {row.real_time_factor:.2f}"
        line += "" if row.matrix_share is None else f"  {row.matrix_share:.0%} of the matmul rate"
        line += "" if row.speedup is None else f"  {row.speedup:.2f}x"
        line += "" if row.psnr_db is None else f"  {row.psnr_db:.1f} dB"
        line += "" if row.ssim is None else f"  SSIM {row.ssim:.4f}"
        line += "" if row.landmark_distance is None else f"  lips {row.landmark_distance:.4f}"
        line += "" if row.opening_correlation is None else f"  opening {row.opening_correlation:.3f}"
        lines.append(line)
    return "\n".join(lines)
