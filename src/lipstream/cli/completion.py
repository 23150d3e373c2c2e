"""`lipstream completion`: shell completion of commands, options and their choices."""

from __future__ import annotations

import argparse

from lipstream.cli.console import write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.errors import SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="print this shell's completion script")


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Print the script, to be sourced or saved where the shell looks for it."""
    try:
        import shtab
    except ImportError as error:
        raise SettingsError("completion: shtab is not installed", fix="pip install shtab") from error
    from lipstream.cli.main import full_parser

    write_result(shtab.complete(full_parser(), args.shell))
    return 0
