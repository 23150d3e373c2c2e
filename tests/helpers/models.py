"""A small model folder in the published layout, made from the goldens' weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from helpers.unet import make_unet
from lipstream.models.unet_config import UNetConfig


def make_model_folder(goldens: Path, folder: Path, **changes: Any) -> Path:
    """Lay the goldens' checkpoints out as a model folder; `changes` replace words of its lipstream.json."""
    folder.mkdir(parents=True)
    shutil.copy(goldens / "latentsync_unet.pt", folder / "latentsync_unet.pt")
    (folder / "whisper").mkdir()
    shutil.copy(goldens / "whisper_tiny.pt", folder / "whisper" / "tiny.pt")
    shutil.copytree(goldens / "vae", folder / "vae")
    dims = torch.load(goldens / "whisper_tiny.pt", weights_only=True)["dims"]
    words = {
        "format": 1,
        "base": "latentsync-1.5",
        "name": "small",
        "resolution": 64,
        "num_inference_steps": 2,
        "unet": json.loads((goldens / "unet_config.json").read_text()),
        "audio_encoder": dims,
    }
    (folder / "lipstream.json").write_text(json.dumps({**words, **changes}))
    return folder


def make_small_model_folder(goldens: Path, folder: Path, **changes: Any) -> Path:
    """Make a model folder with a U-Net of two levels and random weights: few layers, so that it is soon exported."""
    dims = torch.load(goldens / "whisper_tiny.pt", weights_only=True)["dims"]
    unet = {
        "block_out_channels": [32, 32],
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
        "layers_per_block": 1,
        "cross_attention_dim": dims["n_audio_state"],
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "motion_module_kwargs": {"num_attention_heads": 4, "attention_block_types": ["Temporal_Self"]},
    }
    make_model_folder(goldens, folder, **{"unet": unet, "guidance_scale": 1.5, **changes})
    network = make_unet(UNetConfig.from_dict(unet))
    torch.save({"state_dict": network.state_dict()}, folder / "latentsync_unet.pt")
    return folder
