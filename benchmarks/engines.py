"""The networks of a run in each engine, beside torch: encode, denoise and decode, as the line calls them.

The faces of the sample are found and cropped once; then each setting generates them in turn, several times, in one
process. Writes a row a setting to results.csv: the median of the times, their spread, the speed beside the first
setting's and how far the generated crops are from its.

    python -m benchmarks.engines "torch" "engine=onnxruntime" "engine=openvino" "engine=openvino precision=bf16"
    python -m benchmarks.engines --model FOLDER --frames 16 "torch" "engine=openvino"
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.rows import add_row, row
from torch import Tensor

from lipstream.audio_features.features import feature_rows, frame_windows
from lipstream.bundled import sample
from lipstream.face.registry import Detector, make_detector
from lipstream.face.tracking import FaceTrack
from lipstream.media.audio import read_mono
from lipstream.media.loop import read_looped
from lipstream.pipeline.build import build_components, load_networks
from lipstream.pipeline.clocks import Clocks
from lipstream.pipeline.generate import FaceGenerator
from lipstream.pipeline.line import align
from lipstream.pipeline.records import Components, Window
from lipstream.pipeline.threads import ThreadGroup
from lipstream.pipeline.track import Tracked
from lipstream.pipeline.windows import batches, gather
from lipstream.runtime.device import torch_device
from lipstream.runtime.device_stream import DeviceStream
from lipstream.settings import RuntimeSettings, SyncSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="SETTING", help="fields of RuntimeSettings; model=FOLDER too")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--frames", type=int, default=125)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    detector = make_detector("mediapipe", torch.device("cpu"))
    settings = SyncSettings(num_inference_steps=args.steps)
    loaded = {text: components_for(text, args.model, detector) for text in args.settings}
    windows = {text: windows_of(components, detector, args.frames) for text, components in loaded.items()}
    for text, components in loaded.items():  # engines compile at the first call of each shape
        begun_s = time.perf_counter()
        generate(components, settings, windows[text])
        print(f"{text}: first run {time.perf_counter() - begun_s:.2f} s", flush=True)
    times: dict[str, list[float]] = {text: [] for text in loaded}
    crops: dict[str, Tensor] = {}
    for _, (text, components) in itertools.product(range(args.repeats), loaded.items()):
        begun_s = time.perf_counter()
        crops[text] = generate(components, settings, windows[text])
        times[text].append(time.perf_counter() - begun_s)
    report(args, times, crops)


def components_for(text: str, model: str, detector: Detector) -> Components:
    words = dict(word.split("=", 1) for word in text.split() if "=" in word)
    model = words.pop("model", model)
    fields: dict[str, Any] = {name: True if value == "True" else value for name, value in words.items()}
    runtime = RuntimeSettings(device="cpu", **fields)
    return build_components(load_networks(model, runtime, torch_device(runtime)), detector, runtime)


def windows_of(components: Components, detector: Detector, n_frames: int) -> list[list[Window]]:
    """Return the batches of windows of the sample's first frames, crops and audio features computed."""
    resolution, track = components.model.config.resolution, FaceTrack(components.model.config.resolution)
    tracked = []
    for frame in read_looped(sample.VIDEO, n_frames, "pingpong"):
        found = detector.detect(frame.image)
        landmarks = None if found is None else found.landmarks
        tracked.append(Tracked(frame, track.update(frame.source_index, frame.is_repeat, landmarks)))
    rows = feature_rows(lambda: read_mono(sample.SPEECH), components.model.audio_encoder)
    aligned = align(resolution, DeviceStream(torch.device("cpu")), tracked)
    windows = gather(aligned, frame_windows(rows, n_frames), components.model.config.num_frames)
    return list(batches(windows, components.batch))


def generate(components: Components, settings: SyncSettings, windows: list[list[Window]]) -> Tensor:
    """Return the generated crops (frames, channels, res, res)."""
    with ThreadGroup() as threads:
        generator = FaceGenerator(components, settings, threads)
        faces = [one.face for one in generator.frames(windows, Clocks.start()) if one.face is not None]
    return torch.stack(faces)


def report(args: argparse.Namespace, times: dict[str, list[float]], crops: dict[str, Tensor]) -> None:
    first, base_s = next(iter(crops.values())), statistics.median(next(iter(times.values())))
    for text, seconds in times.items():
        wall_s, spread_s = statistics.median(seconds), max(seconds) - min(seconds)
        psnr_db = psnr(first, crops[text])
        summary = f"{text}; {base_s / wall_s:.2f} times the first; {psnr_db:.1f} dB; spread {spread_s:.2f} s"
        print(f"{wall_s:8.3f} s  {summary}", flush=True)
        name = Path(args.model).name
        add_row(row("networks by engine", name, summary, args.frames, wall_s, None, torch.device("cpu")))


def psnr(one: Tensor, other: Tensor) -> float:
    """Of crops in [-1, 1], dB."""
    return 10 * float(np.log10(4 / max(float((one - other).square().mean()), 1e-12)))


if __name__ == "__main__":
    main()
