"""`lipstream export triton`: write a model repository for NVIDIA Triton."""

from __future__ import annotations

import argparse
from pathlib import Path

from lipstream.cli.console import say, write_json, write_result
from lipstream.errors import ModelError, SettingsError
from lipstream.models.names import check_model


def add_triton_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream export triton`."""
    parser.add_argument("model", metavar="NAME|FOLDER", help="see `lipstream models list`")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="REPOSITORY", help="must not exist yet")
    parser.add_argument(
        "--backend",
        choices=("onnxruntime", "tensorrt", "python"),
        default="onnxruntime",
        help="of the server; tensorrt is built for this machine's GPU, python runs onnxruntime in the server's Python"
        " [onnxruntime]",
    )
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="of all networks [fp32]")
    parser.add_argument("--resolution", type=int, metavar="PX", help="side of the crop [the model's own]")
    parser.add_argument("--pruned", metavar="LIST", help="leave out the layers that `lipstream prune` listed")
    parser.add_argument(
        "--max-batch", type=int, default=8, metavar="WINDOWS", help="that the server computes at once [8]"
    )
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")


def run_triton(args: argparse.Namespace) -> None:
    """Carry out what was parsed. Raises SettingsError, ModelError, OutputError."""
    check_model(args.model)
    if args.max_batch < 1:
        raise SettingsError(f"--max-batch {args.max_batch}: must be 1 or more")
    import torch

    from lipstream.engines.cache import weights_sha256
    from lipstream.engines.triton_graphs import SERVED
    from lipstream.engines.triton_repository import export_triton, served_name
    from lipstream.models.load import model_source, read_config

    config, folder = read_config(args.model)
    if config.exported is not None:
        raise ModelError("is an export itself", file=folder, fix="name the model that it was made from")
    source = model_source(args.model, torch.device("cpu"), pruned=args.pruned)
    export_triton(
        source,
        args.output,
        weights_sha256(source),
        backend=args.backend,
        precision=args.precision,
        resolution=args.resolution,
        max_batch=args.max_batch,
        on_graph=_no_report if args.quiet else _report,
    )
    names = [served_name(config.name, graph) for graph in SERVED]
    if args.json:
        write_json({"repository": str(args.output), "models": names})
    else:
        write_result(f"{args.output}: {', '.join(names)}")


def _report(name: str, done: int, n: int) -> None:
    say(f"lipstream: {name} ({done + 1} of {n}) ...")


def _no_report(name: str, done: int, n: int) -> None:
    pass
