"""`lipstream models`: list, download, verify, quantize."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lipstream.cli.console import say, write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.errors import SettingsError
from lipstream.models.names import DETECTOR_MODELS, NAMES, NETWORKS, check_model

if TYPE_CHECKING:
    from lipstream.models.load import VerifiedFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream models`; `list` is what it does without any."""
    parser.set_defaults(action=_list, json=False)
    actions = parser.add_subparsers(metavar="list|download|verify|quantize")
    _add(actions, "list", _list, "what there is, and what is on this machine")

    download = _add(actions, "download", _download, "fetch a model, or go on where a download broke off")
    names = ", ".join((*NAMES, *DETECTOR_MODELS, *NETWORKS))
    download.add_argument("model", metavar="NAME|FOLDER", help=f"{names}, or a folder that lacks its VAE")
    download.add_argument("--from", dest="repo", metavar="REPO", help="another hub repository with the same files")
    download.add_argument("--revision", metavar="REV", help="another commit; its files are not checked")

    verify = _add(actions, "verify", _verify, "check that a model's files are whole, unchanged and safe to load")
    verify.add_argument("model", nargs="?", default="tiny", metavar="NAME|FOLDER")

    quantize = _add(actions, "quantize", _quantize, "write a model's folder again with int8 weights")
    quantize.add_argument("model", metavar="NAME|FOLDER")
    quantize.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="must not exist yet")


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Carry out the action that was parsed."""
    action: Callable[[argparse.Namespace], None] = args.action
    action(args)
    return 0


def _add(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    action: Callable[[argparse.Namespace], None],
    help: str,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=help, description=help)
    parser.set_defaults(action=action)
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    return parser


def _list(args: argparse.Namespace) -> None:
    from lipstream.models.load import describe_models

    models = describe_models()
    if args.json:
        write_json({"models": [asdict(model) for model in models]})
        return
    write_result("\n".join(f"{model.name:15} {model.resolution:4} px   {model.place}" for model in models))


def _download(args: argparse.Namespace) -> None:
    if args.model in DETECTOR_MODELS:
        if args.repo or args.revision:
            raise SettingsError(f"{args.model} is not on the hub", fix="leave out --from and --revision")
        from lipstream.face.insightface import fetch_models

        folder = fetch_models(args.model, _announce)
    elif args.model in NETWORKS:
        if args.revision:
            raise SettingsError(f"{args.model} has one published file", fix="leave out --revision")
        from lipstream.models.network_files import download_network_file

        folder = download_network_file(args.model, _announce, repo=args.repo).parent
    else:
        check_model(args.model)
        from lipstream.models.load import download_model

        folder = download_model(args.model, repo=args.repo, revision=args.revision, announce=_announce)
    if args.json:
        write_json({"model": args.model, "folder": str(folder)})
    else:
        write_result(f"{args.model}: {folder}")


def _announce(message: str) -> None:
    say(f"lipstream: {message}")


def _verify(args: argparse.Namespace) -> None:
    if args.model in NETWORKS:
        _verify_network(args)
        return
    check_model(args.model)
    from lipstream.models.load import verify_model

    _show(args, verify_model(args.model))


def _verify_network(args: argparse.Namespace) -> None:
    from lipstream.models.checkpoint import read_tensors
    from lipstream.models.load import VerifiedFile
    from lipstream.models.network_files import verify_network_file

    path = verify_network_file(args.model)
    _show(args, [VerifiedFile(path, len(read_tensors(path, None)), path.stat().st_size, True)])


def _quantize(args: argparse.Namespace) -> None:
    check_model(args.model)
    from lipstream.models.quantize import write_quantized

    _show(args, write_quantized(args.model, args.output))


def _show(args: argparse.Namespace, files: Sequence[VerifiedFile]) -> None:
    if args.json:
        write_json({"files": [{**asdict(file), "path": str(file.path)} for file in files]})
        return
    write_result(
        "\n".join(f"ok  {file.tensors:5} tensors  {file.size_bytes / 1e6:8.1f} MB  {file.path}" for file in files)
    )
