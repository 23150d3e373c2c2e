"""A small model folder in the published layout, made from the goldens' weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch


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
