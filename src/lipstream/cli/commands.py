"""The commands of `lipstream`, by name: its own, and those of other distributions that are installed beside it."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points

ENTRY_POINTS = "lipstream.commands"
"""Entry points of this group add commands: each names a `Command`."""

LAB = ("bench", "prune", "train")
"""Commands of the distribution lipstream-lab."""


@dataclass(frozen=True)
class Command:
    """A command. module: has its two functions; imported when the command is called, since some need torch.

    add_arguments: takes an ArgumentParser. run: takes the parsed arguments and Interrupts, and returns an exit code.
    """

    help: str
    module: str
    add_arguments: str = "add_arguments"
    run: str = "run"

    def fill(self, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add the command's arguments, and those that all commands have."""
        module = importlib.import_module(self.module)
        getattr(module, self.add_arguments)(parser)
        _add_message_options(parser, default=False)
        parser.set_defaults(command=getattr(module, self.run))
        return parser


def _add_message_options(parser: argparse.ArgumentParser, default: bool | str) -> None:
    """Add the options that all commands have, to the actions below a command too, which leave its defaults alone."""
    options = {
        ("-q", "--quiet"): "errors only",
        ("-v", "--verbose"): "say what is done and with what",
        ("--debug",): "everything any library logs; tracebacks",
    }
    group = next((g for g in parser._action_groups if g.title == "messages"), parser)
    for flags, help in options.items():
        group.add_argument(*flags, action="store_true", default=default, help=help)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _add_message_options(below, argparse.SUPPRESS)


OWN = {
    "sync": Command("lip-sync a video to a recording", "lipstream.cli.sync", "add_sync_arguments", "run_sync"),
    "demo": Command(
        "lip-sync the bundled sample with the bundled model; no network",
        "lipstream.cli.sync",
        "add_demo_arguments",
        "run_demo",
    ),
    "analyse": Command("find the face in every frame of a video, once for many speeches", "lipstream.cli.analyse"),
    "prepare": Command(
        "keep all of a video that does not depend on the speech, for many speeches", "lipstream.cli.prepare"
    ),
    "batch": Command("lip-sync many videos with one model in memory", "lipstream.cli.batch"),
    "serve": Command(
        "serve the page and the HTTP interface; token add|list|revoke",
        "lipstream.cli.serve",
        "add_serve_arguments",
        "run_serve",
    ),
    "worker": Command(
        "do the jobs of a service on another machine", "lipstream.cli.serve", "add_worker_arguments", "run_worker"
    ),
    "live": Command("serve a page where a prepared face says what is typed, recorded or spoken", "lipstream.cli.live"),
    "models": Command("list, download, verify and quantize models", "lipstream.cli.models"),
    "export": Command("write a model for another engine", "lipstream.cli.export"),
    "engines": Command("list the engines, and what the cache of exported networks holds", "lipstream.cli.engines"),
    "doctor": Command("show what this machine has and what is missing, with the fix", "lipstream.cli.doctor"),
    "compare": Command("show videos side by side, with how far they are from one another", "lipstream.cli.compare"),
    "evaluate": Command("score videos: sync, lips, likeness, sharpness, leakage", "lipstream.cli.evaluate"),
    "tune": Command("find the fastest settings for a clip that keep its quality", "lipstream.cli.tune"),
    "profile": Command("show where the time goes: stages, calls, a trace", "lipstream.cli.profile"),
    "completion": Command("print a shell's completion script", "lipstream.cli.completion"),
}


def all_commands() -> dict[str, Command]:
    """Return the commands by name, lipstream's own first."""
    return {**OWN, **{point.name: point.load() for point in sorted(entry_points(group=ENTRY_POINTS))}}
