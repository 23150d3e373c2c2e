"""The networks as the line calls them, computed by an engine's sessions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.engines.graphs import AUDIO_ENCODER, PREPARE, VAE_DECODER, VAE_ENCODER, by_window, deep_graph, head_graph
from lipstream.engines.sessions import Session
from lipstream.errors import ModelError
from lipstream.models.whisper import AudioEncoderConfig


class Sessions:
    """The sessions of one folder of graphs, each opened when it is first needed."""

    def __init__(self, open_graph: Callable[[str], Session]) -> None:
        """open_graph: opens a graph by name."""
        self._open_graph = open_graph
        self._sessions: dict[str, Session] = {}
        self._opening = threading.Lock()

    def __getitem__(self, name: str) -> Session:
        with self._opening:
            if name not in self._sessions:
                self._sessions[name] = self._open_graph(name)
            return self._sessions[name]


class ConditioningLike(Protocol):
    """See lipstream.diffusion.conditioning.Conditioning."""

    @property
    def channels(self) -> Tensor: ...

    @property
    def audio(self) -> Tensor: ...

    @property
    def num_frames(self) -> int: ...


@dataclass(frozen=True)
class PreparedTensors:
    """What `unet_prepare` computed for windows of `num_frames` frames, by name."""

    tensors: Mapping[str, Tensor]
    num_frames: int


class EngineDenoiser:
    """The U-Net: see lipstream.diffusion.sampling.Denoiser."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def prepare(self, conditioning: ConditioningLike) -> PreparedTensors:
        """Compute what is the same at every step."""
        frames = conditioning.num_frames
        channels, audio = (by_window(t, frames) for t in (conditioning.channels, conditioning.audio))
        return PreparedTensors(self._sessions[PREPARE]({"channels": channels, "audio": audio}), frames)

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: PreparedTensors, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the noise of one step: see Denoiser. The deep features are (windows, frames, channels, h, w)."""
        windows = by_window(latents, prepared.num_frames)
        timesteps = timestep.float().expand(len(windows))
        feeds = {"latents": windows, "timestep": timesteps, **prepared.tensors}
        if deep is None:
            deep = self._sessions[deep_graph(guided)](feeds)["deep"]
        predicted = self._sessions[head_graph(guided)]({**feeds, "deep": deep})["predicted"]
        return predicted.flatten(0, 1).to(latents.device, torch.float32), deep


class EngineAutoencoder:
    """The VAE's two calls, answered as diffusers' AutoencoderKL answers them."""

    def __init__(self, sessions: Sessions, config: SimpleNamespace, device: torch.device, dtype: torch.dtype) -> None:
        """config: as `autoencoder_config` returns it."""
        self.config = config
        self.device, self.dtype = device, dtype
        self._sessions = sessions
        self._most_images = 1

    def encode(self, pixels: Tensor) -> Any:
        """Return the distribution of latents, of which the mode can be asked."""
        latents = self._run(VAE_ENCODER, "pixels", pixels, "latents")
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: Tensor) -> Any:
        """Return the pixels as `sample`."""
        return SimpleNamespace(sample=self._run(VAE_DECODER, "latents", latents, "pixels"))

    def _run(self, graph: str, name: str, images: Tensor, result: str) -> Tensor:
        """Fill up to the number of images of earlier calls: engines prepare themselves for each number again.

        Each image is computed by itself, so that the others do not change it.
        """
        n = len(images)
        self._most_images = max(self._most_images, n)
        filled = F.pad(images, (0, 0, 0, 0, 0, 0, 0, self._most_images - n))
        return self._sessions[graph]({name: filled})[result][:n]


def autoencoder_config(text: str, file: str | Path) -> SimpleNamespace:
    """Read the configuration of diffusers' AutoencoderKL. file: where the text is from. Raises ModelError."""
    try:
        values = json.loads(text)
        return SimpleNamespace(
            block_out_channels=tuple(values["block_out_channels"]),
            scaling_factor=float(values.get("scaling_factor", 0.18215)),
            latent_channels=int(values["latent_channels"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"not an autoencoder's configuration ({type(error).__name__})", file=file, fix="export the model again"
        ) from error


def read_autoencoder_config(path: Path) -> SimpleNamespace:
    """Read the configuration from its file. Raises ModelError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ModelError("the autoencoder's configuration cannot be read", file=path, fix="export it again") from error
    return autoencoder_config(text, path)


class EngineAudioEncoder:
    """The audio encoder's one call: see lipstream.models.whisper.AudioEncoder."""

    def __init__(
        self, sessions: Sessions, config: AudioEncoderConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self._sessions = sessions

    def __call__(self, mel: Tensor) -> Tensor:
        """(1, n_mels, 2 * n_audio_ctx) to (1, n_audio_ctx, n_audio_layer + 1, n_audio_state)."""
        return self._sessions[AUDIO_ENCODER]({"mel": mel})["states"]
