"""What can be chosen: frozen records and the presets. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lipstream.errors import SettingsError

Texture = Literal["painted", "kept"]
Loop = Literal["pingpong", "hold", "trim"]
NoFace = Literal["pass", "error"]
PresetName = Literal["exact", "balanced", "fast"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "fp8"]
Quantize = Literal["none", "int8", "int8-dynamic"]
SchedulerName = Literal["ddim", "dpm++2m", "unipc"]
X264Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
DetectorName = Literal["auto", "buffalo_s", "buffalo_l", "mediapipe"]

FRAME_RATE_HZ = 25

EVERYWHERE = (0.0, 1.0)


@dataclass(frozen=True)
class Preset:
    """What a sync does where its settings leave the choice: the fields are those of SyncSettings.

    step_share: scales the model's own number of steps.
    """

    step_share: float
    scheduler: SchedulerName
    step_cache: int
    guidance_interval: tuple[float, float]
    search_every: int


PRESETS: dict[str, Preset] = {
    "exact": Preset(step_share=1.0, scheduler="ddim", step_cache=1, guidance_interval=EVERYWHERE, search_every=1),
    "balanced": Preset(
        step_share=0.25, scheduler="dpm++2m", step_cache=1, guidance_interval=EVERYWHERE, search_every=1
    ),
    "fast": Preset(step_share=0.2, scheduler="unipc", step_cache=1, guidance_interval=(0.0, 0.5), search_every=25),
}


@dataclass(frozen=True)
class Sampling:
    """How latents are sampled, every choice made; the fields are those of SyncSettings."""

    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerName = "ddim"
    step_cache: int = 1
    guidance_interval: tuple[float, float] = EVERYWHERE

    def guided(self, step: int) -> bool:
        """Whether a step, the first being 0, is computed with guidance: both branches and not the one with audio."""
        begin, end = self.guidance_interval
        return self.guidance_scale > 1.0 and begin <= step / self.num_inference_steps < end


@dataclass(frozen=True)
class SyncSettings:
    """How one clip is synced. `None` leaves the choice to the model or the preset.

    num_inference_steps: 1 to 100. guidance_scale: above 1.0 doubles the work.
    scheduler: what solves the way from noise to picture. step_cache: the deep part of the U-Net is computed every Nth
    step and kept for those between; 1 is off. guidance_interval: guidance only in steps whose position, 0 for the
    first and below 1 for the last, is from the first number up to the second. resolution: of the crop, px, a multiple
    of 64. seed: of the noise. loop: what the video does when the speech outlasts it. no_face: pass a frame without a
    face through, or stop at it (published behaviour). crf: x264's constant rate factor, 0 (lossless) to 51.
    x264_preset: how much time goes into a smaller file. search_every: the face is sought in the whole of every frame
    (1), or in the whole of every Nth and round its face in the others: half as fast again, but landmarks differ by a
    pixel or two. texture: all as "painted" (published behaviour), or the frame's own "kept" where what was painted
    agrees with it.
    """

    preset: PresetName = "exact"
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: SchedulerName | None = None
    step_cache: int | None = None
    guidance_interval: tuple[float, float] | None = None
    resolution: int | None = None
    seed: int = 1247
    loop: Loop = "pingpong"
    no_face: NoFace = "pass"
    crf: int = 18
    x264_preset: X264Preset = "medium"
    search_every: int | None = None
    texture: Texture | None = None

    def __post_init__(self) -> None:
        _among("preset", self.preset, tuple(PRESETS))
        _among("loop", self.loop, get_args(Loop))
        _among("no_face", self.no_face, get_args(NoFace))
        _among("scheduler", self._decided("scheduler"), get_args(SchedulerName))
        _between("num_inference_steps", self.num_inference_steps, 1, 100)
        _between("guidance_scale", self.guidance_scale, 0.0, 100.0)
        _between("step_cache", self.step_cache, 1, 100)
        begin, end = self._decided("guidance_interval")
        if not 0.0 <= begin <= end <= 1.0:
            raise SettingsError(f"guidance_interval = {begin},{end}: must be two rising numbers from 0 to 1")
        if self.resolution is not None and (self.resolution < 64 or self.resolution % 64):
            raise SettingsError(f"resolution = {self.resolution}: must be a multiple of 64, from 64 up")
        _between("seed", self.seed, 0, 2**63 - 1)
        _between("crf", self.crf, 0, 51)
        _among("x264_preset", self.x264_preset, get_args(X264Preset))
        _between("search_every", self.search_every, 1, 100)
        _among("texture", self.texture or "painted", get_args(Texture))

    def sampling(self, model_steps: int, model_scale: float) -> Sampling:
        """How a model samples whose own number of steps is `model_steps` and whose own guidance is `model_scale`."""
        share = max(1, round(model_steps * PRESETS[self.preset].step_share))
        return Sampling(
            num_inference_steps=share if self.num_inference_steps is None else self.num_inference_steps,
            guidance_scale=model_scale if self.guidance_scale is None else self.guidance_scale,
            scheduler=self._decided("scheduler"),
            step_cache=self._decided("step_cache"),
            guidance_interval=self._decided("guidance_interval"),
        )

    def frames_a_search(self) -> int:
        """`search_every`, with None decided."""
        return int(self._decided("search_every"))

    def _decided(self, name: str) -> Any:
        """A field, as told or else as the preset has it."""
        told = getattr(self, name)
        return getattr(PRESETS[self.preset], name) if told is None else told


@dataclass(frozen=True)
class RuntimeSettings:
    """What the work runs on.

    precision: of the U-Net, and of the others where they are told nothing else; "auto" is fp16 on CUDA (published
    behaviour) and fp32 elsewhere. vae_precision, audio_precision: None is as `precision`, with fp16 for fp8.
    quantize: 8-bit weights in all networks; "none" leaves them as the model's files hold them. threads: for face work;
    None takes one per core, up to 8. frame_memory_mb: bound of the frames in flight, MB; where one U-Net call needs
    more, that is taken. batch: windows in one U-Net call; "auto" takes as many as free memory allows. compile: run
    the U-Net through torch.compile, which takes minutes before it pays. pruned: the file that lists the U-Net's layers
    to leave out, as `lipstream prune` writes it.
    """

    device: str = "auto"
    precision: Precision = "auto"
    vae_precision: Precision | None = None
    audio_precision: Precision | None = None
    quantize: Quantize = "none"
    detector: DetectorName = "auto"
    threads: int | None = None
    batch: int | Literal["auto"] = 1
    compile: bool = False
    pruned: str | Path | None = None
    frame_memory_mb: int = 512

    def __post_init__(self) -> None:
        _among("precision", self.precision, get_args(Precision))
        for name in ("vae_precision", "audio_precision"):
            if getattr(self, name) == "fp8":
                raise SettingsError(f"{name} = 'fp8': fp8 is for the U-Net's linear layers; use fp16, bf16 or fp32")
            _among(name, getattr(self, name) or "auto", get_args(Precision))
        _among("quantize", self.quantize, get_args(Quantize))
        _among("detector", self.detector, get_args(DetectorName))
        _between("threads", self.threads, 1, 256)
        _between("frame_memory_mb", self.frame_memory_mb, 1, 1_000_000)
        if self.batch != "auto":
            _between("batch", self.batch, 1, 256)


def _among(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")


def _between(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise SettingsError(f"{name} = {value!r}: must be from {low} to {high}")
