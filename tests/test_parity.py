"""Equality with the published implementation, on numbers recorded from it. See goldens/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from lipstream.audio_features.features import feature_rows, frame_windows
from lipstream.diffusion import conditioning
from lipstream.diffusion.mask import face_mask
from lipstream.diffusion.sampling import UNetDenoiser, sample
from lipstream.face.align import crop_face, face_size
from lipstream.face.composite import paste_face, resize_face
from lipstream.face.tracking import FaceTrack
from lipstream.media.audio import read_mono
from lipstream.models.load import read_config
from lipstream.models.unet import UNet
from lipstream.models.unet_config import UNetConfig
from lipstream.models.whisper import AudioEncoder, AudioEncoderConfig
from lipstream.presets import Sampling


@pytest.fixture(scope="module")
def alignment(goldens: Path) -> dict[str, np.ndarray]:
    with np.load(goldens / "align_io.npz") as recorded:
        return dict(recorded)


def test_face_size(alignment):
    assert face_size(int(alignment["resolution"])) == tuple(alignment["face_size"])


def test_affine_matrices_with_smoothing(alignment):
    track = FaceTrack(int(alignment["resolution"]))
    for index, landmarks in enumerate(alignment["landmarks"]):
        affine_matrix = track.update(index, False, landmarks)
        np.testing.assert_allclose(affine_matrix, alignment["matrices"][index], rtol=0, atol=4e-4)


def test_crops(alignment):
    resolution = int(alignment["resolution"])
    for frame, affine_matrix, golden in zip(
        alignment["frames"], alignment["matrices"], alignment["crops"], strict=True
    ):
        crop = crop_face(frame, affine_matrix, resolution).permute(1, 2, 0).numpy()
        difference = np.abs(crop.astype(int) - golden)
        assert difference.mean() <= 0.005
        assert difference.max() <= 1


def test_restored_frames(alignment):
    resolution = int(alignment["resolution"])
    for frame, crop, affine_matrix, golden in zip(
        alignment["frames"], alignment["crops"], alignment["matrices"], alignment["restored"], strict=True
    ):
        face = torch.from_numpy(crop).permute(2, 0, 1) / 127.5 - 1
        face[:, resolution // 2 :] *= -0.7
        restored = paste_face(frame, resize_face(face), affine_matrix)
        mean_square = np.square(restored.astype(float) - golden).mean()
        assert 10 * np.log10(255**2 / max(mean_square, 1e-9)) >= 85


def relative_error(ours: Tensor, golden: Tensor) -> float:
    return float((ours - golden).norm() / golden.norm())


@pytest.fixture(scope="module")
def unet(goldens: Path) -> UNet:
    config = UNetConfig.from_dict(json.loads((goldens / "unet_config.json").read_text()))
    unet = UNet(config).eval()
    tensors = torch.load(goldens / "latentsync_unet.pt", weights_only=True)["state_dict"]
    unet.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    return unet.to(memory_format=torch.channels_last)


def frames_first(clip: Tensor) -> Tensor:
    """(b, c, f, h, w), as recorded, to (b * f, c, h, w), as the U-Net here lays frames out."""
    return clip.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("name", ["full", "tail", "wide"])
@torch.inference_mode()
def test_unet(goldens: Path, unet: UNet, name: str) -> None:
    io = {key.removeprefix(f"{name}."): t for key, t in load_file(goldens / "unet_io.safetensors").items()}
    output = unet(frames_first(io["sample"]), io["timestep"], io["audio"], io["sample"].shape[2])
    assert relative_error(output, frames_first(io["output"])) <= 4e-6


def test_audio_features_and_windows(goldens: Path) -> None:
    io = load_file(goldens / "audio_io.safetensors")
    checkpoint = torch.load(goldens / "whisper_tiny.pt", weights_only=True)
    encoder = AudioEncoder(AudioEncoderConfig.from_dict(checkpoint["dims"])).eval()
    prefix = "encoder."
    tensors = {k.removeprefix(prefix): t.float() for k, t in checkpoint["model_state_dict"].items() if k[:8] == prefix}
    encoder.load_state_dict({name: tensors[name] for name in encoder.state_dict()})

    rows = list(feature_rows(lambda: read_mono(goldens / "audio.wav"), encoder))
    features = torch.cat(rows)
    assert len(features) == int(io["features_len"])
    assert relative_error(features[io["features_at"]], io["features"]) <= 1.2e-6
    windows = list(frame_windows(rows, int(io["n_chunks"])))
    assert relative_error(torch.stack([windows[i] for i in io["chunks_at"]]), io["chunks"]) <= 1.2e-6


def test_mask_from_its_outline(goldens: Path) -> None:
    outline = json.loads((goldens / "mask_polygon.json").read_text())
    golden = load_file(goldens / "clip_io.safetensors")["mask"]
    mask = face_mask(outline["polygon_xy"], outline["size"], golden.shape[-1])
    assert float((mask - golden).abs().max()) <= 1e-6


@torch.inference_mode()
def test_a_clip_through_the_latent_core(goldens: Path, unet: UNet) -> None:
    io = load_file(goldens / "clip_io.safetensors")
    config, _ = read_config("latentsync-1.5")
    words = json.loads((goldens / "vae" / "config.json").read_text())
    vae: Any = AutoencoderKL.from_config(words).eval()
    vae.load_state_dict(load_file(goldens / "vae" / "diffusion_pytorch_model.safetensors"))
    mask = io["mask"][:1]
    latents, decoded = [], []
    for faces, audio in zip(
        io["faces"].split(config.num_frames), io["audio_chunks"].split(config.num_frames), strict=True
    ):
        pixels = conditioning.to_pixels(faces)
        latents.append(
            sample(
                UNetDenoiser(unet),
                config.scheduler,
                io["noise"][:, :, 0],
                conditioning.condition(vae, pixels, mask, audio, len(faces)),
                Sampling(int(io["num_inference_steps"]), float(io["guidance_scale"])),
            )
        )
        new = conditioning.decode(vae, latents[-1])
        decoded.append(conditioning.keep_surroundings(new, pixels, mask))
    assert relative_error(torch.cat(latents), frames_first(io["latents"])) <= 1.2e-4
    assert relative_error(torch.cat(decoded), io["decoded"]) <= 9e-5
