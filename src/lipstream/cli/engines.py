"""`lipstream engines`: what is kept of networks that were exported for an engine."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from lipstream.cli.console import write_json, write_result
from lipstream.cli.interrupts import Interrupts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream engines`; `list` is what it does without any."""
    parser.set_defaults(action=_list, json=False)
    actions = parser.add_subparsers(metavar="list|clear")
    for name, action, help in (
        ("list", _list, "the engines that can run here, and what the cache holds"),
        ("clear", _clear, "empty the cache"),
    ):
        one = actions.add_parser(name, help=help, description=help)
        one.set_defaults(action=action)
        one.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Carry out the action that was parsed."""
    action: Callable[[argparse.Namespace], None] = args.action
    action(args)
    return 0


def _list(args: argparse.Namespace) -> None:
    from lipstream.engines.cache import cache_folder, entries
    from lipstream.engines.extras import installed_engines

    engines, cached = installed_engines(), entries()
    if args.json:
        kept = [{"name": one.name, "path": str(one.path), "size_bytes": one.size_bytes} for one in cached]
        write_json({"engines": engines, "cache": str(cache_folder()), "entries": kept})
        return
    lines = [f"{name:12} {state}" for name, state in engines.items()]
    lines += [f"cache: {cache_folder()}" + ("" if cached else " (empty)")]
    write_result("\n".join(lines + [f"{one.size_bytes / 1e6:10.1f} MB  {one.name}" for one in cached]))


def _clear(args: argparse.Namespace) -> None:
    from lipstream.engines.cache import cache_folder, clear

    freed_bytes = clear()
    if args.json:
        write_json({"cache": str(cache_folder()), "freed_bytes": freed_bytes})
    else:
        write_result(f"{cache_folder()}: {freed_bytes / 1e6:.1f} MB freed")
