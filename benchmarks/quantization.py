"""What 8-bit weights save and cost: files, memory, seconds, and pictures beside those of the model as it is.

For the bundled model, and for a model of the published layout with random weights (which say nothing of quality), the
files are written again with int8 weights; then every scheme syncs the sample, each in a process of its own, in turns.
Seconds are those of the networks' stages (features, encode, denoise), the median of the turns; the peak is the
process's, on CUDA torch's. PSNR is over the pixels that the unquantised model generated. A row a scheme goes to
results.csv. With --layers, linear layers of the published widths alone, with torchao's beside ours where installed.

    python -m benchmarks.quantization
    python -m benchmarks.quantization --layers
    python -m benchmarks.quantization --device cuda --precision fp16 fp8 --full --steps 20 --seconds 4   # 6 GB of disk
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import wave
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from benchmarks.gpu.full_size import make_folder, peak_mb
from benchmarks.rows import add_row, row, timed_s
from numpy.typing import NDArray
from torch import nn

from lipstream import LipSync, SyncSettings
from lipstream.bundled import sample
from lipstream.models.load import verify_model
from lipstream.models.quantize import write_quantized
from lipstream.models.quantized_layers import Float8Linear, hold_int8, int8_tensors

STAGES = ("features", "encode", "denoise")
# Rows, inputs and outputs of linear layers: attention and feed-forward of the published U-Net, 16 frames of 256 px.
LAYERS = ((16384, 320, 320), (16384, 320, 2560), (4096, 640, 640), (4096, 640, 5120), (1024, 1280, 1280),
          (1024, 1280, 10240))  # fmt: skip
GENERATED = 2  # grey levels that a pixel must differ by to count as generated


@dataclass(frozen=True)
class Arm:
    """A model's folder or name, and what it runs as."""

    name: str
    model: str
    precision: str
    quantize: str
    disk_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="of the networks; the first is compared with")
    parser.add_argument("--steps", type=int, default=4, help="of the random model; the bundled one takes its own")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the sample's speech")
    parser.add_argument("--full", action="store_true", help="the random model at the published widths")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", action="store_true", help="linear layers alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(**json.loads(args.one))))
    elif args.layers:
        compare_layers(torch.device(args.device), args.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            random = Path(folder) / "random"
            make_folder(random, "latentsync-1.5", narrow=not args.full)
            for model, steps in (("tiny", None), (str(random), args.steps)):
                compare(Path(folder), model, steps, args)


def compare(folder: Path, model: str, steps: int | None, args: argparse.Namespace) -> None:
    """Run every scheme of one model in turns; print and add a row each."""
    speech = folder / "speech.wav"
    cut_speech(speech, args.seconds)
    small = folder / f"{Path(model).name}-int8"
    write_quantized(model, small)
    plain_mb, small_mb = (sum(file.size_bytes for file in verify_model(m)) / 1e6 for m in (model, small))
    arms = [Arm(f"{precision}", model, precision, "none", plain_mb) for precision in args.precision]
    arms += [
        Arm(f"{precision}, {quantize}", str(small), precision, quantize, small_mb)
        for precision in args.precision
        if precision != "fp8"
        for quantize in ("int8", "int8-dynamic")
    ]
    found: dict[Arm, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for turn in range(args.rounds):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            out = folder / f"{arms.index(arm)}.mp4"
            found[arm].append(in_a_process(arm, speech, out, steps, args.device))
    source = read_images(sample.VIDEO)
    reference = read_images(folder / "0.mp4")
    name = (
        "tiny" if steps is None else f"random weights, {'published' if args.full else 'narrow'} layout, {steps} steps"
    )
    for index, arm in enumerate(arms):
        seconds = [one["seconds"] for one in found[arm]]
        weights_mb = found[arm][0]["weights_mb"]
        psnr = "" if index == 0 else f", PSNR {psnr_db(reference, read_images(folder / f'{index}.mp4'), source):.1f} dB"
        words = f"{arm.name}, files {arm.disk_mb:.1f} MB, weights in memory {weights_mb:.1f} MB"
        words += f", networks' stages {min(seconds):.2f} to {max(seconds):.2f} s{psnr}"
        peak = statistics.median(one["peak_mb"] for one in found[arm])
        added = row("quantization", name, words, found[arm][0]["frames"], statistics.median(seconds), peak,
                    torch.device(args.device))  # fmt: skip
        add_row(added)
        print(f"{name}: {added['frames_per_s']} frames/s, peak {added['peak_mb']} MB; {words}", flush=True)


def in_a_process(arm: Arm, speech: Path, out: Path, steps: int | None, device: str) -> dict[str, Any]:
    """What `run_one` finds, with nothing else in memory."""
    words = json.dumps({**asdict(arm), "speech": str(speech), "out": str(out), "steps": steps, "device": device})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quantization", "--one", words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{arm}: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_one(
    model: str, precision: str, quantize: str, speech: str, out: str, steps: int | None, device: str, **_: Any
) -> dict[str, Any]:
    """Sync once to warm up and once to measure."""
    sync = LipSync.load(
        model,
        device=device,
        precision=precision,
        quantize=quantize,
        detector="mediapipe",
        compile=precision == "fp8",  # refused uncompiled
    )
    settings = SyncSettings(num_inference_steps=steps, crf=0)
    for _ in range(2):
        result = sync(sample.VIDEO, speech, out, settings, overwrite=True)
    line = sync._components
    networks = (line.model.unet, line.model.vae, line.model.audio_encoder)
    return {
        "seconds": sum(stage.seconds for stage in result.stages if stage.name in STAGES),
        "frames": result.frames,
        "weights_mb": sum(tensor.nbytes for network in networks for tensor in network.state_dict().values()) / 1e6,
        "peak_mb": peak_mb(line.device),
    }


@torch.inference_mode()
def compare_layers(device: torch.device, rounds: int) -> None:
    """Linear layers alone, in turns: a line each, nothing to results.csv."""
    for rows, n_in, n_out in LAYERS:
        for dtype in (torch.float32, torch.bfloat16) if device.type == "cpu" else (torch.float16,):
            plain: Any = nn.Linear(n_in, n_out).to(device, dtype)
            layers = {"plain": plain}
            layers |= {name: in_int8(plain, dynamic=name != "int8") for name in ("int8", "int8-dynamic")}
            if device.type == "cuda":
                layers["fp8"] = Float8Linear(plain)
            layers |= of_torchao(plain)
            seconds = in_turns(layers, torch.randn(rows, n_in, device=device, dtype=dtype), rounds)
            each = (f"{name} {statistics.median(s) * 1e3:.2f} ({min(s) * 1e3:.2f})" for name, s in seconds.items())
            print(f"{rows} x {n_in} to {n_out}, {dtype}, ms (least): {', '.join(each)}", flush=True)


def in_turns(layers: dict[str, Any], x: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of every layer's calls, after one that is not counted."""
    for layer in layers.values():
        layer(x)
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds):
        for name, layer in layers.items():
            seconds[name].append(timed_s(functools.partial(layer, x), x.device))
    return seconds


def in_int8(layer: nn.Linear, *, dynamic: bool) -> Any:
    """The layer with int8 weights, its bias as it was."""
    held = nn.ModuleDict({"layer": layer})
    tensors = int8_tensors(held, held.state_dict())
    held = nn.ModuleDict({"layer": layer})
    hold_int8(held, dynamic=dynamic)
    held.load_state_dict(tensors, assign=True)
    return held["layer"]


def of_torchao(layer: nn.Linear) -> dict[str, Any]:
    """The same layer as torchao quantises it; none where it is not installed."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        return {}
    made = {}
    for name, config in (("weights", Int8WeightOnlyConfig()), ("dynamic", Int8DynamicActivationInt8WeightConfig())):
        held = nn.Sequential(nn.Linear(layer.in_features, layer.out_features).to(layer.weight))
        held[0].load_state_dict(layer.state_dict())
        quantize_(held, config)
        made[f"torchao {name}"] = held
    return made


def cut_speech(path: Path, duration_s: float) -> None:
    """The first of the sample's speech."""
    with wave.open(str(sample.SPEECH)) as source, wave.open(str(path), "wb") as cut:
        cut.setparams(source.getparams())
        cut.writeframes(source.readframes(round(duration_s * source.getframerate())))


def read_images(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def psnr_db(
    reference: list[NDArray[np.uint8]], images: list[NDArray[np.uint8]], source: list[NDArray[np.uint8]]
) -> float:
    """Over the pixels in which the reference differs from the source."""
    total, count = 0.0, 0
    for one, other, before in zip(reference, images, source, strict=False):
        generated = (np.abs(one.astype(int) - before) > GENERATED).any(-1)
        total += float(np.square(one[generated].astype(float) - other[generated]).sum())
        count += 3 * int(generated.sum())
    return float(10 * np.log10(255**2 / max(total / max(count, 1), 1e-9)))


if __name__ == "__main__":
    main()
