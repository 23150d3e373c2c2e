"""`lipstream COMMAND`: find the command, run it, turn what goes wrong into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lipstream.cli.commands import LAB, OWN, all_commands
from lipstream.cli.console import BROKEN_PIPE, prepare_streams, say, start_logging, write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.errors import Cancelled, LipstreamError, SettingsError
from lipstream.face.quiet import hide_native_logs
from lipstream.version import __version__


class _InternalError(LipstreamError):
    code = "internal"


class _Parser(argparse.ArgumentParser):
    """A parser that raises its errors, takes no abbreviated options, and suggests the option that was meant."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message, fix=f"see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        parsed, unknown = super().parse_known_args(args, namespace)
        options = [one.partition("=")[0] for one in unknown if one.startswith("--")]
        near = difflib.get_close_matches(options[0], self._option_string_actions, n=1) if options else []
        if near:
            raise SettingsError(f"{options[0]!r} is not an option", fix=f"did you mean {near[0]}?")
        return parsed, unknown

    def _print_message(self, message: str, file: Any = None) -> None:
        write_result(message.rstrip("\n"))  # help and the version; standard output may be full, or its reader gone


def script() -> NoReturn:
    """Run the command line as a process of its own, and end the process."""
    exit_code = main()
    if exit_code >= 128:
        # A thread may still be inside a library's call, which must not meet an interpreter that is being taken apart.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see lipstream.errors). Errors are one line on standard error.

    With --json an error is also one JSON object on standard output: {"error": {"code", "message", "file", "fix"}}.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    as_json, debug = "--json" in given, "--debug" in given
    with Interrupts() as interrupts:
        try:
            args = _parse(given)
            start_logging(quiet=args.quiet, verbose=args.verbose, debug=args.debug)
            _keep_freed_memory()
            if not args.debug:
                hide_native_logs()
            run: Callable[[argparse.Namespace, Interrupts], int] = args.command
            return run(args, interrupts)
        except BrokenPipeError:
            return BROKEN_PIPE
        except LipstreamError as error:
            exit_code = interrupts.exit_code if interrupts.cancel.is_set() else error.exit_code
            return _fail(error, exit_code, as_json=as_json, debug=debug)
        except KeyboardInterrupt:
            interrupted = Cancelled("interrupted; no unfinished file is left behind")
            return _fail(interrupted, interrupts.exit_code, as_json=as_json, debug=debug)
        except Exception as fault:  # noqa: BLE001  (the last resort)
            internal = _InternalError(
                f"internal error ({type(fault).__name__}: {fault})",
                fix="run it again with --debug and report the traceback",
            )
            return _fail(internal, internal.exit_code, as_json=as_json, debug=debug)


def full_parser() -> argparse.ArgumentParser:
    """Return a parser of all commands with all their options; needs every command's module."""
    parser = _top_parser()
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, command in all_commands().items():
        command.fill(commands.add_parser(name, help=command.help, description=_sentence(command.help)))
    return parser


def _parse(given: Sequence[str]) -> argparse.Namespace:
    """Parse with the named command's module alone, so that --help and errors are quick."""
    name = given[0] if given else ""
    command = OWN.get(name) or all_commands().get(name)
    if command is None:
        if name.startswith("-") and name not in ("-h", "--help", "--version"):
            raise SettingsError(f"{name} comes before the command", fix="write lipstream COMMAND, then its options")
        parser = _top_parser()
        commands = parser.add_subparsers(title="commands", metavar="COMMAND")
        for known, one in all_commands().items():
            commands.add_parser(known, help=one.help)
        if given and not name.startswith("-"):
            raise _unknown_command(given)
        parser.parse_args(given)
        raise SettingsError("no COMMAND given", fix="see lipstream --help")
    return command.fill(_Parser(prog=f"lipstream {name}", description=_sentence(command.help))).parse_args(given[1:])


def _top_parser() -> _Parser:
    parser = _Parser(prog="lipstream", description="Change a video so that its mouth says a recording.")
    parser.add_argument("--version", action="version", version=f"lipstream {__version__}")
    return parser


def _unknown_command(given: Sequence[str]) -> SettingsError:
    name, known = given[0], all_commands()
    near = difflib.get_close_matches(name, known)
    if name in LAB:
        return SettingsError(f"{name!r} is a command of lipstream-lab", fix="pip install lipstream-lab")
    if near:
        fix = f"did you mean lipstream {near[0]}?"
    elif len(given) > 1 and Path(name).suffix:
        fix = f"did you mean lipstream sync {shlex.join(given)}?"
    else:
        fix = f"use one of {', '.join(known)}; see lipstream --help"
    return SettingsError(f"{name!r} is not a command", fix=fix)


def _sentence(help: str) -> str:
    return f"{help[0].upper()}{help[1:]}."


def _keep_freed_memory() -> None:
    from lipstream.runtime.allocator import keep_freed_memory

    keep_freed_memory()


def _fail(error: LipstreamError, exit_code: int, *, as_json: bool, debug: bool) -> int:
    """Say what went wrong. To be called while the exception is handled."""
    if debug:
        say(traceback.format_exc())
    say(f"lipstream: error: {' '.join(str(error).split())}")
    if as_json:
        described = {"code": error.code, "message": error.message, "file": error.file, "fix": error.fix}
        try:
            write_json({"error": described})
        except (BrokenPipeError, LipstreamError):
            return exit_code
    return exit_code
