"""`lipstream export`: write a model for another engine."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from lipstream.cli.console import say, write_json, write_result
from lipstream.cli.export_triton import add_triton_arguments, run_triton
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.sync import check_paths
from lipstream.errors import SettingsError
from lipstream.models.names import check_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream export`."""
    actions = parser.add_subparsers(metavar="onnx|triton", required=True)
    onnx = actions.add_parser("onnx", help="a folder of ONNX graphs, which --model takes with --engine")
    onnx.set_defaults(action=_export_onnx)
    onnx.add_argument("model", metavar="NAME|FOLDER", help="see `lipstream models list`")
    onnx.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="must not exist yet")
    onnx.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="of the weights [fp32]")
    onnx.add_argument("--resolution", type=int, metavar="PX", help="of the crop; fixed in the graphs [the model's]")
    onnx.add_argument("--pruned", metavar="LIST", help="leave out the layers that `lipstream prune` listed")
    onnx.add_argument("--int8", action="store_true", help="8-bit convolutions and linear layers; needs --calibrate")
    onnx.add_argument("--calibrate", nargs=2, metavar=("VIDEO", "AUDIO"), help="a clip that is typical of your work")
    onnx.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    triton = actions.add_parser("triton", help="a model repository for NVIDIA Triton, which serves --engine triton")
    triton.set_defaults(action=run_triton)
    add_triton_arguments(triton)


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Carry out the action that was parsed."""
    action: Callable[[argparse.Namespace], None] = args.action
    action(args)
    return 0


def _export_onnx(args: argparse.Namespace) -> None:
    check_model(args.model)
    if args.int8 != (args.calibrate is not None):
        raise SettingsError("--int8 and --calibrate belong together", fix="give both or neither")
    if args.int8 and args.precision != "fp32":
        raise SettingsError("--int8 computes the other layers in fp32", fix="leave out --precision")
    check_paths(*args.calibrate or ())
    import torch

    from lipstream.calibration import export_int8
    from lipstream.engines.cache import weights_sha256
    from lipstream.engines.export import export_onnx
    from lipstream.models.load import model_source, verify_model
    from lipstream.models.locate import read_config_values

    source = model_source(args.model, torch.device("cpu"), pruned=args.pruned)
    values, digest = read_config_values(args.model)[0], weights_sha256(source)
    report = None if args.quiet else report_graph
    if args.int8:
        export_int8(
            source,
            values,
            args.output,
            digest,
            tuple(args.calibrate),
            resolution=args.resolution,
            on_graph=report or _no_report,
        )
    else:
        export_onnx(
            source,
            values,
            args.output,
            digest,
            precision=args.precision,
            resolution=args.resolution,
            on_graph=report or _no_report,
        )
    files = verify_model(args.output)
    size_bytes = sum(file.size_bytes for file in files)
    if args.json:
        write_json({"folder": str(args.output), "files": [str(file.path) for file in files], "size_bytes": size_bytes})
    else:
        write_result(f"{args.output}: {len(files)} files, {size_bytes / 1e6:.1f} MB")


def report_graph(name: str, done: int, n: int) -> None:
    """Say which graph is being written."""
    say(f"lipstream: {name} ({done + 1} of {n}) ...")


def _no_report(name: str, done: int, n: int) -> None:
    pass
