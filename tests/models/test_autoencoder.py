"""The autoencoder: diffusers' numbers, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from lipstream.models.autoencoder import Autoencoder, AutoencoderConfig
from lipstream.models.load import locate, read_config

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
SMALL = {
    "block_out_channels": [32, 64],
    "down_block_types": [DOWN] * 2,
    "up_block_types": [UP] * 2,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def bundled() -> dict[str, Any]:
    return dict(json.loads(locate(*read_config("tiny")).vae_config.read_text("utf-8")))


@pytest.mark.parametrize("words", [bundled(), SMALL], ids=["bundled", "with attention"])
def test_it_encodes_and_decodes_as_diffusers_does(words: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs: Any = AutoencoderKL.from_config(words).eval()
    ours = Autoencoder(AutoencoderConfig.from_dict(words)).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.rand(2, 3, 48, 32) * 2 - 1
    with torch.inference_mode():
        latents = theirs.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(ours.encode(pixels).latent_dist.mode(), latents, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.decode(latents).sample, theirs.decode(latents).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("other", [{"act_fn": "relu"}, {"down_block_types": ["AttnDownEncoderBlock2D", DOWN]}])
def test_blocks_that_it_does_not_compute_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not supported"):
        AutoencoderConfig.from_dict({**SMALL, **other})
