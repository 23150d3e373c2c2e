"""The published pipeline beside `sync` on a CPU, file to file, by turns, with the same random weights.

Runs the pipeline's own code from a checkout of https://github.com/bytedance/LatentSync: reading, alignment, U-Net and
VAE of the published shape and a fifth (52 M parameters) and a quarter of its width, pasting, three encodings. Its
device and half precision, which are constants there, are the CPU and float32 here. What it cannot be given is free for
it: faces are those that ours finds, audio features random numbers; ours does both in its time. Ours keeps freed memory,
as the command line does; the published code has it as the C library handles it. Rows go to results.csv.
Needs ffmpeg, and einops, kornia, decord, imageio[ffmpeg], soundfile, matplotlib and opencv-python. From the root:

    python -m benchmarks.published_sync FOLDER --published CHECKOUT
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.gpu.full_size import write_model
from benchmarks.gpu.published import fill_published, import_published, in_c_library_memory, stand_in
from benchmarks.quantization import cut_speech
from benchmarks.rows import add_row, by_turns, row
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor

from lipstream import LipSync, SyncSettings
from lipstream.bundled import sample
from lipstream.face.detector import Face
from lipstream.media.reader import read_frames
from lipstream.models.load import read_config
from lipstream.runtime.allocator import keep_freed_memory
from lipstream.settings import FRAME_RATE_HZ

CPU = torch.device("cpu")
UNET_WIDTHS, VAE_WIDTHS = (64, 128, 256, 256), (32, 64, 128, 128)
GUIDANCE_SCALE, TOKENS, CHANNELS = 1.5, 50, 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the model is made in it where it does not exist yet")
    parser.add_argument("--published", type=Path, required=True, help="a checkout of the published code")
    parser.add_argument("--frames", type=int, default=48, help="of the bundled sample")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    args = parser.parse_args()
    pipeline_module = import_pipeline(args.published.resolve())
    keep_freed_memory()
    config, _ = read_config("latentsync-1.5")
    config = replace(config, unet=replace(config.unet, block_out_channels=UNET_WIDTHS))
    folder, weights = args.folder / "256-fifth", args.folder / "weights-fifth"
    sync = LipSync.load(write_model(folder, weights, config, VAE_WIDTHS, "cpu"), detector="mediapipe")
    published = published_pipeline(pipeline_module, sync, weights / config.files.vae, args)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # the published code makes and clears ./temp
        compare(sync, published, args)
        os.chdir(here)


def compare(sync: LipSync, published: Callable[[Path, Path], object], args: argparse.Namespace) -> None:
    """Time both, print and add a row each."""
    speech, made = Path("speech.wav").resolve(), {way: Path(f"{way}.mp4").resolve() for way in ("published", "ours")}
    cut_speech(speech, args.frames / FRAME_RATE_HZ)
    settings = SyncSettings(num_inference_steps=args.steps, guidance_scale=GUIDANCE_SCALE)

    def ours() -> Tensor:
        sync(sample.VIDEO, speech, made["ours"], settings, overwrite=True)
        return torch.zeros(())

    def theirs() -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            published(speech, made["published"])
        return torch.zeros(())

    _, times, _ = by_turns({"published": in_c_library_memory(theirs), "ours": ours}, args.rounds, CPU)
    counts = {way: sum(1 for _ in read_frames(path)) for way, path in made.items()}
    if set(counts.values()) != {args.frames}:
        raise SystemExit(f"not {args.frames} frames: {counts}")
    medians_s = {way: statistics.median(seconds) for way, seconds in times.items()}
    for way, seconds in times.items():
        words = f"{way}; fp32, {args.steps} steps, guidance {GUIDANCE_SCALE}; "
        words += f"{min(seconds):.4g} to {max(seconds):.4g} s in {args.rounds} rounds"
        if way == "ours":
            words += f"; {medians_s['published'] / medians_s['ours']:.3g} times as fast"
        measured = row("published pipeline, narrow (52 M), 256 px, end to end", "random weights", words, args.frames,
                       medians_s[way], None, CPU)  # fmt: skip
        if not args.no_row:
            add_row(measured)
        print(f"{measured['benchmark']}: {measured['frames_per_s']} frames/s, {words}", flush=True)


def import_pipeline(checkout: Path) -> Any:
    """The published pipeline's module, with stand-ins for what needs a GPU, a download or torchvision."""

    def resized(image: Tensor, size: tuple[int, int], **_: object) -> Tensor:
        if tuple(image.shape[-2:]) == tuple(size):
            return image
        return F.interpolate(image[None].float(), size=size, mode="bicubic", antialias=True)[0]

    functional = stand_in("torchvision.transforms.functional", resize=resized)
    transforms = stand_in(
        "torchvision.transforms",
        functional=functional,
        InterpolationMode=SimpleNamespace(BICUBIC=None),
        Resize=lambda size, **_: partial(resized, size=size),
        Normalize=lambda mean, std, **_: lambda image: (image - mean[0]) / std[0],
    )
    stand_in("torchvision", transforms=transforms)
    stand_in("latentsync.utils.face_detector", FaceDetector=None)
    stand_in("latentsync.whisper.audio2feature", Audio2Feature=None)
    return import_published(checkout, "latentsync.pipelines.lipsync_pipeline")


def published_pipeline(module: Any, sync: LipSync, vae_folder: Path, args: argparse.Namespace) -> Callable[..., object]:
    """What makes a video of the sample and a recording, (speech, output), with the weights of `sync`."""
    checkout, processor_of = args.published.resolve(), module.ImageProcessor
    detect = sync.detector.detect
    found = [detect(frame.image) for frame, _ in zip(read_frames(sample.VIDEO), range(args.frames), strict=False)]

    def processor(resolution: int, mask_image: Tensor, **_: object) -> Any:
        made = processor_of(resolution, "cpu", mask_image)
        made.restorer = type(made.restorer)(resolution=resolution, device="cpu", dtype=torch.float32)
        faces = iter(found)
        made.face_detector = lambda image: as_published(next(faces))
        return made

    module.ImageProcessor = processor
    vae = AutoencoderKL.from_pretrained(vae_folder)
    vae.register_to_config(shift_factor=0)
    speech = RandomSpeech(list(torch.randn(args.frames, TOKENS, CHANNELS)))
    scheduler = DDIMScheduler.from_pretrained(checkout / "configs")
    unet = fill_published(module.UNet3DConditionModel, sync.model)
    unet.register_to_config(sample_size=64)  # as in the published configuration; the pipeline asks for no less
    pipeline = module.LipsyncPipeline(vae, speech, unet, scheduler)
    return lambda recording, output: pipeline(
        video_path=str(sample.VIDEO),
        audio_path=str(recording),
        video_out_path=str(output),
        num_inference_steps=args.steps,
        guidance_scale=GUIDANCE_SCALE,
        weight_dtype=torch.float32,
        width=256,
        height=256,
        mask_image_path=str(checkout / "latentsync" / "utils" / "mask.png"),
        temp_dir="temp",
    )


@dataclass(frozen=True)
class RandomSpeech:
    """What the pipeline takes for its audio encoder. chunks: of each frame, (TOKENS, CHANNELS)."""

    chunks: list[Tensor]

    def audio2feat(self, path: str) -> None:
        """Features of a recording: none, as the chunks are there."""

    def feature2chunks(self, feature_array: None, fps: int) -> list[Tensor]:
        return self.chunks


def as_published(face: Face) -> tuple[object, np.ndarray]:
    """A face's box and 106 landmarks, of which those that the pipeline averages are where ours are."""
    points = np.zeros((106, 2))
    for indices, point in zip(([43, 48, 49, 51, 50], range(101, 106), [74, 77, 83, 86]), face.landmarks, strict=True):
        points[list(indices)] = point
    return face.box, points


if __name__ == "__main__":
    main()
