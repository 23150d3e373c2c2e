"""One window and one step of the full-size model with random weights, through the whole command line.

Makes a folder in the published layout (latentsync_unet.pt, whisper/tiny.pt, vae/) with random weights of the
published sizes, and syncs 16 frames of the bundled sample with it. Says time and peak memory. Random weights say
nothing of quality. Needs about 6 GB of disk and 12 GB of memory: python benchmarks/full_size.py FOLDER
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import wave
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from lipstream import LipSync, SyncSettings, sample
from lipstream.models.load import read_config
from lipstream.models.unet import UNet
from lipstream.models.whisper import AudioEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="made where it does not exist yet")
    parser.add_argument("--model", default="latentsync-1.5", help="whose sizes: latentsync-1.5 (256 px) or -1.6 (512)")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if not (args.folder / "lipstream.json").exists():
        make_folder(args.folder, args.model)
    speech = args.folder / "speech.wav"
    with wave.open(str(sample.SPEECH)) as source, wave.open(str(speech), "wb") as cut:
        cut.setparams(source.getparams())
        cut.writeframes(source.readframes(round(16 / 25 * source.getframerate())))

    begun_s = time.perf_counter()
    sync = LipSync.load(args.folder, device=args.device)
    loaded_s = time.perf_counter()
    settings = SyncSettings(num_inference_steps=args.steps, guidance_scale=args.guidance_scale)
    result = sync(sample.VIDEO, speech, args.folder / "out.mp4", settings, overwrite=True)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"load {loaded_s - begun_s:.1f} s, sync {result.wall_s:.1f} s, peak memory {peak_gb:.1f} GB")
    for stage in result.stages:
        print(f"{stage.name:10} {stage.seconds:8.2f} s  {stage.frames} frames")


@torch.no_grad()
def make_folder(folder: Path, name: str) -> None:
    """Random weights: small enough everywhere that 1246 layers on end neither vanish nor overflow."""
    config, _ = read_config(name)
    torch.manual_seed(0)
    (folder / "whisper").mkdir(parents=True)
    unet = UNet(config.unet)
    torch.save({"global_step": 0, "state_dict": half(unet)}, folder / config.files.unet)
    del unet
    encoder = {f"encoder.{key}": value for key, value in half(AudioEncoder(config.audio_encoder)).items()}
    dims = {**asdict(config.audio_encoder), "n_vocab": 51865}
    torch.save({"dims": dims, "model_state_dict": encoder}, folder / config.files.audio_encoder)
    widths = (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.18215,
    )
    vae.save_pretrained(folder / config.files.vae)
    (folder / "lipstream.json").write_text(json.dumps({"base": name}))


def half(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in module.state_dict().items()}


if __name__ == "__main__":
    main()
