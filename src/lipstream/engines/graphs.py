"""The networks cut into the graphs that are exported: what stays the same over the steps, and what a step computes.

A step is two graphs, split where the step cache splits it (see UNet.step): `unet_deep` computes the deep features and
`unet_head` the prediction from them. Each has a guided twin, which shares its prefix between the branches and skips
cross-attention without audio. Tensors of the U-Net's graphs are (windows, frames, ...), both numbers free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipstream.models.unet import Prepared, UNet
from lipstream.models.unet_layers import KeysValues
from lipstream.models.whisper import AudioEncoder
from lipstream.runtime.memory import PIXELS_PER_GPU_CALL

PREPARE, VAE_ENCODER, VAE_DECODER, AUDIO_ENCODER = "unet_prepare", "vae_encoder", "vae_decoder", "audio_encoder"
FEATURES = "conv_in_features"
# In the example inputs: neither 0 nor 1, which the exporter would take for constants, and different numbers.
_WINDOWS, _FRAMES = 2, 3


def deep_graph(guided: bool) -> str:
    """Return the name of the graph that computes the deep features."""
    return "unet_deep_guided" if guided else "unet_deep"


def head_graph(guided: bool) -> str:
    """Return the name of the graph that computes the prediction from the deep features."""
    return "unet_head_guided" if guided else "unet_head"


GRAPHS = (
    PREPARE,
    *(graph(guided) for graph in (deep_graph, head_graph) for guided in (False, True)),
    VAE_ENCODER,
    VAE_DECODER,
    AUDIO_ENCODER,
)


@dataclass(frozen=True)
class Graph:
    """A module to export, with example inputs by name and the names of its outputs.

    free: the axes of each input whose length is free, with their names; "2*windows" is twice as long as `windows`.
    longest: the axes whose length is bounded.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    free: dict[str, dict[int, str]]
    longest: dict[str, int] = field(default_factory=dict)


def by_window(x: Tensor, num_frames: int) -> Tensor:
    """(windows * num_frames, ...) to (windows, num_frames, ...)."""
    return x.reshape(-1, num_frames, *x.shape[1:])


class ExportedGroupNorm(nn.GroupNorm):
    """The computation of PooledGroupNorm as one operation that engines have a kernel for.

    It is instance norm, a group as a channel: ONNX Runtime takes apart what ONNX calls GroupNormalization, with a
    variance of mean(x^2) - mean(x)^2, which is wrong in the fourth digit at a mean of 30 deviations and below zero at
    1000. Its instance norm subtracts the mean first, and is faster in ONNX Runtime and no slower in OpenVINO.
    """

    def forward(self, x: Tensor, num_frames: int = 1) -> Tensor:
        """Normalise `x` (windows * num_frames, channels, h, w) to the same shape and dtype, in float32."""
        windows = by_window(x.float(), num_frames).transpose(1, 2) if num_frames != 1 else x.float()
        normed = F.instance_norm(windows.reshape(windows.shape[0], self.num_groups, -1), eps=self.eps).view_as(windows)
        shape = (-1, *(1,) * (windows.ndim - 2))
        scaled = (normed * self.weight.float().view(shape) + self.bias.float().view(shape)).to(x.dtype)
        return scaled.transpose(1, 2).flatten(0, 1) if num_frames != 1 else scaled


class Prepare(nn.Module):
    """What is the same at every step: see UNet.prepare."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, channels: Tensor, audio: Tensor) -> tuple[Tensor, ...]:
        """`channels` (windows, frames, 1 + 2 C, h, w), `audio` (windows, frames, tokens, dim)."""
        frames = channels.shape[1]
        prepared = self.unet.prepare(channels.flatten(0, 1), audio.flatten(0, 1), frames)
        audio_of = [tensor for block in prepared.audio for keys_values in block.values() for tensor in keys_values]
        tensors = (prepared.conv_in_features, *audio_of)
        return tuple(by_window(tensor, frames) for tensor in tensors)


class Deep(nn.Module):
    """The deep features of a step."""

    def __init__(self, unet: UNet, layers: list[tuple[int, str]], guided: bool) -> None:
        """layers: block and name of those whose cross-attention is computed here."""
        super().__init__()
        self.unet, self.guided, self._layers = unet, guided, layers

    def forward(self, latents: Tensor, timestep: Tensor, conv_in_features: Tensor, *audio: Tensor) -> Tensor:
        """Return (windows, frames, channels, h, w); guided: twice as many windows, the unconditional branch first.

        timestep: (windows,). audio: keys and values of each of `layers`, (windows, frames, heads, tokens, channels).
        """
        prepared = _prepared(self.unet, conv_in_features, audio, self._layers)
        deep = self.unet.deep_features(latents.flatten(0, 1), timestep, prepared, self.guided)
        return by_window(deep, latents.shape[1])


class Head(nn.Module):
    """The prediction of a step from its deep features."""

    def __init__(self, unet: UNet, layers: list[tuple[int, str]], guided: bool) -> None:
        """layers: as of `Deep`."""
        super().__init__()
        self.unet, self.guided, self._layers = unet, guided, layers

    def forward(
        self, latents: Tensor, timestep: Tensor, conv_in_features: Tensor, deep: Tensor, *audio: Tensor
    ) -> Tensor:
        """Return (windows, frames, C, h, w); guided, timestep and audio: as of `Deep`."""
        prepared = _prepared(self.unet, conv_in_features, audio, self._layers)
        predicted, _ = self.unet.step(latents.flatten(0, 1), timestep, prepared, self.guided, deep.flatten(0, 1))
        return by_window(predicted, latents.shape[1])


def _prepared(unet: UNet, features: Tensor, audio: tuple[Tensor, ...], layers: list[tuple[int, str]]) -> Prepared:
    tensors = [tensor.flatten(0, 1) for tensor in audio]
    of_blocks: tuple[dict[str, KeysValues], ...] = tuple({} for _ in unet.blocks())
    for (block, name), keys, values in zip(layers, tensors[::2], tensors[1::2], strict=True):
        of_blocks[block][name] = KeysValues(keys, values)
    return Prepared(features.flatten(0, 1), of_blocks, features.shape[1])


def _names(layers: list[tuple[int, str]]) -> list[str]:
    """Return the names of the layers' keys and values."""
    return [f"block_{block}_layer_{name}_{part}" for block, name in layers for part in ("keys", "values")]


def _examples(module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Return zeros of the shapes and dtypes that `module` returns for `inputs`, computing nothing."""
    held = itertools.chain(module.named_parameters(), module.named_buffers())
    outputs = torch.func.functional_call(module, {name: tensor.to("meta") for name, tensor in held}, _meta(inputs))
    return [torch.zeros(t.shape, dtype=t.dtype) for t in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _meta(inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.to("meta") for tensor in inputs)


class Encode(nn.Module):
    """The VAE's encoder, at the mode of its distribution."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels` (n, 3, h, w) in [-1, 1] to unscaled latents (n, C, h / factor, w / factor)."""
        latents: Tensor = self.vae.encode(pixels).latent_dist.mode()
        return latents


class Decode(nn.Module):
    """The VAE's decoder."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Unscaled `latents` (n, C, h, w) to pixels (n, 3, factor h, factor w), about [-1, 1]."""
        pixels: Tensor = self.vae.decode(latents).sample
        return pixels


def greatest_lengths(num_frames: int, resolution: int, windows: int) -> dict[str, int]:
    """Return the greatest length of each free axis, by its name, where a call takes up to so many windows."""
    images = min(PIXELS_PER_GPU_CALL // resolution**2, 2 * num_frames * windows)
    return {"windows": windows, "frames": num_frames, "images": max(1, images)}


def unet_graphs(unet: UNet, size: int, tokens: int) -> Iterator[Graph]:
    """Yield the graphs of the U-Net for latents of `size` x `size` and `tokens` audio tokens per frame."""
    config, like = unet.config, unet.conv_in.weight
    shape, axes = (_WINDOWS, _FRAMES), {0: "windows", 1: "frames"}
    channels = torch.zeros((*shape, config.in_channels - config.out_channels, size, size)).to(like)
    audio = torch.zeros((*shape, tokens, config.cross_attention_dim)).to(like)
    prepare = Prepare(unet)
    features, *keys_values = _examples(prepare, channels, audio)
    layers = [(block, name) for block, one in enumerate(unet.blocks()) for name in one.attentions]
    given = dict(zip(_names(layers), keys_values, strict=True))
    inputs = {"channels": channels, "audio": audio}
    yield Graph(PREPARE, prepare, inputs, (FEATURES, *given), dict.fromkeys(inputs, axes))

    latents = torch.zeros((*shape, config.out_channels, size, size)).to(like)
    step = {"latents": latents, "timestep": torch.full((_WINDOWS,), 500.0), FEATURES: features}
    step_axes = {"latents": axes, "timestep": {0: "windows"}, FEATURES: axes}
    last = (len(unet.blocks()) - 1, str(len(unet.blocks()[-1].resnets) - 1))
    longest = {"frames": config.motion_module_kwargs.temporal_position_encoding_max_len}
    in_head = [layer for layer in layers if layer == last]
    in_deep = [layer for layer in layers if layer != last]
    for guided in (False, True):
        audio_of = {name: given[name] for name in _names(in_deep)}
        deep = Deep(unet, in_deep, guided)
        (result,) = _examples(deep, *step.values(), *audio_of.values())
        free = step_axes | dict.fromkeys(audio_of, axes)
        yield Graph(deep_graph(guided), deep, step | audio_of, ("deep",), free, longest)

        audio_of = {name: given[name] for name in _names(in_head)}
        of_deep = {0: "windows" if len(result) == _WINDOWS else "2*windows", 1: "frames"}
        inputs = step | {"deep": result} | audio_of
        free = step_axes | {"deep": of_deep} | dict.fromkeys(audio_of, axes)
        yield Graph(head_graph(guided), Head(unet, in_head, guided), inputs, ("predicted",), free, longest)


def vae_graphs(vae: Any, resolution: int, size: int, channels: int) -> Iterator[Graph]:
    """Yield the VAE's graphs for images of `resolution` x `resolution`, any number of them."""
    images = torch.zeros((_FRAMES, 3, resolution, resolution), device=vae.device, dtype=vae.dtype)
    latents = torch.zeros((_FRAMES, channels, size, size), device=vae.device, dtype=vae.dtype)
    yield Graph(VAE_ENCODER, Encode(vae), {"pixels": images}, ("latents",), {"pixels": {0: "images"}})
    yield Graph(VAE_DECODER, Decode(vae), {"latents": latents}, ("pixels",), {"latents": {0: "images"}})


def audio_encoder_graph(encoder: AudioEncoder) -> Graph:
    """Return the audio encoder's graph: one block of 2 * n_audio_ctx mel frames a call."""
    sizes = encoder.config
    mel = torch.zeros((1, sizes.n_mels, 2 * sizes.n_audio_ctx), device=encoder.device, dtype=encoder.dtype)
    return Graph(AUDIO_ENCODER, encoder, {"mel": mel}, ("states",), {})
