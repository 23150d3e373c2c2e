"""Count the device memory that LatentSync 1.5 and 1.6 take, on the meta device: nothing is computed or downloaded.

The networks are built in the published shape and run by lipstream's own code; every operation's result counts from when
it is made until it is released. Counted for CUDA: fused attention, which stores no scores, and channels-last layers.
Encoding runs beside denoising and decoding, which take turns, so a run peaks at

    weights + encode + max(denoise, decode) + windows that wait between stages.

Not counted, hence added as an allowance: the CUDA context (0.5 GiB), and 15 % for workspaces of convolutions and matrix
products, faces cut out and pasted on the device, and fragmentation. All presets have guided steps at the models' own
guidance scale and so the same peak; `unguided` is --guidance-scale 1. From the repository's root:

    python -m benchmarks.memory_counted                # a table, and rows for results.csv on --row
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from benchmarks.gpu.full_size import PUBLISHED_VAE_WIDTHS, make_vae
from benchmarks.rows import add_row, row
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lipstream.diffusion import conditioning
from lipstream.diffusion.sampling import UNetDenoiser, sample
from lipstream.models.group_norm import replace_group_norms
from lipstream.models.load import read_config
from lipstream.models.quantized_layers import hold_float8, hold_int8
from lipstream.models.unet import UNet
from lipstream.models.unet_config import UNetConfig
from lipstream.models.whisper import AudioEncoder, AudioEncoderConfig
from lipstream.presets import Sampling

META = torch.device("meta")
MODELS = {"latentsync-1.5": 256, "latentsync-1.6": 512}
NUM_FRAMES = 16
BLOCK = 512  # CUDA's allocator rounds up to it, bytes
CARDS_GIB = (8, 12, 16, 24)
CONTEXT_GIB, ALLOWANCE = 0.5, 0.15
# Batches held on the device: encoded ones that wait or are being denoised, and finished ones on their way to pasting.
WAITING_ENCODED, WAITING_DECODED = 3, 2
PRECISIONS = {
    "fp32": torch.float32,
    "fp16": torch.float16,  # bf16 is the same
    "fp8": torch.float16,
    "fp16, int8 weights": torch.float16,
    "fp32, int8 weights": torch.float32,
}


class LiveBytes(TorchDispatchMode):
    """Tracks the bytes of tensors made inside it that are still referenced, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):  # made outside: what is only a view of it takes nothing
                self._storages.setdefault(tensor.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._storages:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._storages[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size


def fused_attention(query: Tensor, keys: Tensor, values: Tensor, *args: Any, **words: Any) -> Tensor:
    """Allocate what a fused kernel does: the result, laid out as it is merged again, and a sum for each query."""
    sums = query.new_empty(query.shape[:3], dtype=torch.float32)
    result = query.new_empty(query.shape[0], query.shape[2], query.shape[1], values.shape[3]).transpose(1, 2)
    del sums
    return result


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the peak of the bytes that `work` allocates, its result among them."""
    with (
        torch.inference_mode(),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", fused_attention),
        LiveBytes() as counter,
    ):
        work()
    return counter.peak


@dataclass(frozen=True)
class Counted:
    """Peaks of one model in one precision, bytes. Weights are of each network, the others of activations alone."""

    unet: int
    vae: int
    audio_encoder: int
    features: int
    encode: int
    denoise: int
    decode: int
    waiting: int

    @property
    def weights(self) -> int:
        return self.unet + self.vae + self.audio_encoder

    @property
    def activations(self) -> int:
        return self.encode + max(self.denoise, self.decode) + self.waiting

    @property
    def total_gib(self) -> float:
        """With the allowance for what is not counted."""
        return (self.weights + self.activations) * (1 + ALLOWANCE) / 2**30 + CONTEXT_GIB

    @property
    def offloaded_gib(self) -> float:
        """`total_gib` if only the networks at work were on the device and nothing ran beside anything."""
        at_work = max(
            self.audio_encoder + self.features,
            self.vae + self.encode,
            self.unet + self.denoise,
            self.vae + self.decode,
        )
        return (at_work + self.waiting) * (1 + ALLOWANCE) / 2**30 + CONTEXT_GIB


def build(precision: str) -> tuple[Any, Any, Any]:
    """Return the U-Net, the VAE and the audio encoder on the meta device, as lipstream loads them on CUDA."""
    dtype = PRECISIONS[precision]
    with META:
        networks: list[Any] = [UNet(UNetConfig()), make_vae(PUBLISHED_VAE_WIDTHS), AudioEncoder(AudioEncoderConfig())]
    for network in networks:
        if "int8" in precision:
            hold_int8(network, dynamic=False)
        for module in network.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.dtype != torch.int8 and name != "weight_scale":
                    tensor.data = tensor.data.to(dtype)
        network.eval().requires_grad_(False)
    unet, vae, audio_encoder = networks
    replace_group_norms(vae)
    unet.fuse_projections()
    if precision == "fp8":
        hold_float8(unet)
    for network in (unet, vae):
        network.to(memory_format=torch.channels_last)
    return unet, vae, audio_encoder


def held_bytes(network: nn.Module) -> int:
    return sum(-(-tensor.nbytes // BLOCK) * BLOCK for tensor in network.state_dict().values())


def count(model: str, precision: str, *, guided: bool, windows: int = 1) -> Counted:
    """Count one model of the published shape with `windows` windows in a U-Net call."""
    unet, vae, audio_encoder = build(precision)
    resolution, (config, _) = MODELS[model], read_config(model)
    n, size = windows * NUM_FRAMES, resolution // 8
    pixels = torch.empty(n, 3, resolution, resolution, device=META)
    mask = torch.empty(1, resolution, resolution, device=META)
    audio = torch.empty(n, audio_encoder.config.tokens_per_frame, unet.config.cross_attention_dim, device=META)
    noise = torch.empty(1, 4, size, size, device=META)
    latents = noise.expand(n, -1, -1, -1)
    conditions = conditioning.Conditioning(torch.empty(n, 9, size, size, device=META), audio, NUM_FRAMES)
    sampling = Sampling(1, config.guidance_scale if guided else 1.0)
    denoiser = UNetDenoiser(unet)
    mel = torch.empty(1, 80, 3000, device=META, dtype=PRECISIONS[precision])
    encoded = pixels.nbytes + audio.nbytes + conditions.channels.nbytes
    return Counted(
        unet=held_bytes(unet),
        vae=held_bytes(vae),
        audio_encoder=held_bytes(audio_encoder),
        features=peak_bytes(lambda: audio_encoder(mel)),
        encode=peak_bytes(lambda: conditioning.condition(vae, pixels, mask, audio, NUM_FRAMES)),
        denoise=peak_bytes(lambda: sample(denoiser, config.scheduler, noise, conditions, sampling)),
        decode=peak_bytes(lambda: conditioning.decode(vae, latents)),
        waiting=WAITING_ENCODED * encoded + WAITING_DECODED * pixels.nbytes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4], help="windows in a U-Net call")
    parser.add_argument("--row", action="store_true", help="add rows to results.csv")
    args = parser.parse_args()
    columns = ("model", "precision", "guidance", "batch", "weights", "encode", "denoise", "decode")
    columns += ("run, with allowance", "if offloaded", "fits in")
    print(f"| {' | '.join(columns)} |")
    print(f"|{' --- |' * len(columns)}")
    for model in args.model:
        for precision in args.precision:
            for guided in (True, False):
                for windows in args.batch if guided else (1,):
                    report(model, precision, guided, windows, add=args.row)


def report(model: str, precision: str, guided: bool, windows: int, *, add: bool) -> None:
    """Print a line of the table, GiB; add a row to results.csv if asked for."""
    counted = count(model, precision, guided=guided, windows=windows)
    parts = (counted.weights, counted.encode, counted.denoise, counted.decode)
    card = next((f"{card} GB" for card in CARDS_GIB if counted.total_gib <= card * 0.98), "more")
    words = [model, precision, "guided" if guided else "unguided", str(windows), *(f"{b / 2**30:.2f}" for b in parts)]
    totals = f"{counted.total_gib:.1f} | {counted.offloaded_gib:.1f}"
    print(f"| {' | '.join(words)} | {totals} | {card} |", flush=True)
    if add:
        description = (
            f"{precision}, {words[2]}, batch {windows}; GiB: weights {words[4]}, encode {words[5]}, denoise {words[6]}"
        )
        description += f", decode {words[7]}, run with allowance {counted.total_gib:.2f}, fits in {card}"
        added = row("memory, counted", model, description, windows * NUM_FRAMES, 1.0, counted.total_gib * 1024, META)
        add_row({**added, "wall_s": "", "frames_per_s": ""})


if __name__ == "__main__":
    main()
