"""`lipstream doctor`: what this machine has and what is missing, with the fix."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from lipstream.cli.console import write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.face.quiet import IMPORT_ERRORS, import_problem
from lipstream.version import __version__

# What an extra needs that nothing else brings along.
_EXTRAS = {
    "insightface": ("insightface", "onnxruntime"),
    "measure": ("matplotlib", "PIL"),
    "completion": ("shtab",),
    "tune": ("optuna", "matplotlib"),
}


_LIBRARIES = ("torch", "diffusers", "av", "numpy")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. detail: what was found, or what is missing and the fix. needed: no run works without it."""

    name: str
    ok: bool
    detail: str
    needed: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream doctor`."""
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Print the findings; exit code 1 where `lipstream sync` could not run."""
    findings = examine()
    if args.json:
        write_json({finding.name: asdict(finding) for finding in findings})
    else:
        write_result("\n".join(f"{'ok ' if f.ok else '-- '} {f.name:15} {f.detail}" for f in findings))
    return int(any(finding.needed and not finding.ok for finding in findings))


def examine() -> list[Finding]:
    """Look at the machine. Loads no model and uses no network."""
    version = f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    findings = [Finding("lipstream", True, version), _libraries()]
    if findings[-1].ok:  # nothing else can be looked at without them
        findings += [_h264(), _device(), *_detectors()]
    findings += [Finding(f"[{extra}]", *_extra(extra, names)) for extra, names in _EXTRAS.items()]
    findings.append(_laboratory())
    if findings[1].ok:
        findings += _models()
    return [*findings, _disk()]


def _libraries() -> Finding:
    versions = []
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {importlib.import_module(name).__version__}")
        except IMPORT_ERRORS as error:
            problem = import_problem(name, error)
            return Finding("libraries", False, f"{problem.message}. Fix: {problem.fix}", needed=True)
    return Finding("libraries", True, ", ".join(versions), needed=True)


def _models() -> list[Finding]:
    from lipstream.models.locate import describe_models

    return [Finding(model.name, model.is_here, model.place) for model in describe_models()]


def _laboratory() -> Finding:
    if importlib.util.find_spec("lipstream_lab") is None:
        return Finding("lipstream-lab", False, "not installed; it adds the commands bench, prune and train")
    return Finding("lipstream-lab", True, "installed: bench, prune and train")


def _h264() -> Finding:
    import av

    if "libx264" in av.codecs_available:
        return Finding("H.264", True, "libx264 is in this PyAV", needed=True)
    fix = "pip install --force-reinstall --only-binary=av av"
    return Finding("H.264", False, f"this PyAV has no libx264. Fix: {fix}", needed=True)


def _device() -> Finding:
    import torch

    from lipstream.runtime.cpu import cores
    from lipstream.runtime.device import computes_bf16, torch_device
    from lipstream.settings import RuntimeSettings

    arithmetic = "with" if computes_bf16(torch.device("cpu")) else "without"
    parts = [f"cpu with {cores()} cores, {arithmetic} bf16 arithmetic"]
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        parts += [f"cuda:{i} {gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for i, gpu in enumerate(gpus)]
    if torch.backends.mps.is_available():
        parts.append("mps (Metal)")
    chosen = torch_device(RuntimeSettings())
    return Finding("device", True, f"{', '.join(parts)}; --device auto takes {chosen}")


def _detectors() -> list[Finding]:
    from lipstream.errors import ModelError
    from lipstream.face.registry import auto_detector, detector_report

    findings = [
        Finding(s.name, s.problem is None, f"{s.problem or 'ready'} (licence of its models: {s.licence})")
        for s in detector_report()
    ]
    try:
        name, reason = auto_detector()
    except ModelError as error:
        return [*findings, Finding("faces", False, str(error), needed=True)]
    return [*findings, Finding("faces", True, f"--detector auto takes {name} ({reason})", needed=True)]


def _extra(extra: str, names: tuple[str, ...]) -> tuple[bool, str]:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        return False, f'not installed ({", ".join(missing)}). Fix: pip install "lipstream[{extra}]"'
    return True, "installed"


def _disk() -> Finding:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    return Finding("disk", free_gb > 1, f"{free_gb:.1f} GB free here")
