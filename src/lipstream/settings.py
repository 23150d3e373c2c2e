"""What can be chosen: frozen records whose fields carry their option, choices, range and help, and the presets.

The command line builds its options from these fields, so that a default or a sentence of help is written once. Imports
no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from lipstream.errors import SettingsError
from lipstream.validation import coerced

Texture = Literal["generated", "source"]
MatchColor = Literal["off", "source"]
Loop = Literal["pingpong", "hold", "trim"]
NoFace = Literal["pass", "error"]
PresetName = Literal["exact", "balanced", "fast"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "fp8"]
PrecisionOfOthers = Literal["auto", "fp32", "fp16", "bf16"]
Quantize = Literal["none", "int8", "int8-dynamic"]
SchedulerName = Literal["ddim", "dpm++2m", "unipc"]
VaeName = Literal["own", "taesd", "taesd-decoder"]
X264Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
EngineName = Literal["torch", "onnxruntime", "openvino", "tensorrt", "triton"]
DetectorName = Literal["auto", "buffalo_s", "buffalo_l", "mediapipe"]

FRAME_RATE_HZ = 25

WHOLE_INTERVAL = (0.0, 1.0)

_DEVICE = re.compile(r"auto|(cpu|cuda|mps)(:[0-9]+)?")

S = TypeVar("S", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    group: str,
    flag: str | None = None,
    metavar: str | None = None,
    low: float | None = None,
    high: float | None = None,
    multiple_of: int | None = None,
    unset: str | None = None,
) -> Any:
    """Describe a field of a settings record.

    help: one sentence, for the command line. group: the heading it stands under there. flag: its option, where that is
    not the field's name. low, high, multiple_of: what a number must keep to. unset: what None means.
    """
    metadata = {"help": help, "group": group, "flag": flag, "metavar": metavar, "unset": unset}
    return field(default=default, metadata=metadata | {"low": low, "high": high, "multiple_of": multiple_of})


@dataclass(frozen=True)
class Settings:
    """Base of the settings records: every field is checked and brought to its declared type. Hashable."""

    def __post_init__(self) -> None:
        for name, value in coerced(self).items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any]) -> S:
        """Make a record from what `to_dict` gave. Raises SettingsError for an unknown name or a value out of range."""
        for name in values:
            check_field_name(cls, name)
        return cls(**values)


def check_field_name(record: type[Settings], name: str) -> None:
    """Raise SettingsError, with the nearest names as the fix, where `name` is not a field of `record`."""
    known = [f.name for f in fields(record)]
    if name in known:
        return
    near = difflib.get_close_matches(name, known)
    fix = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}"
    raise SettingsError(f"{name!r} is not a field of {record.__name__}", fix=fix)


@dataclass(frozen=True)
class Preset:
    """What a run does where its settings leave the choice: the fields are those of SyncSettings.

    step_share: scales the model's own number of steps.
    """

    step_share: float
    scheduler: SchedulerName
    step_cache: int
    guidance_interval: tuple[float, float]
    detect_every: int


PRESETS: dict[str, Preset] = {
    "exact": Preset(step_share=1.0, scheduler="ddim", step_cache=1, guidance_interval=WHOLE_INTERVAL, detect_every=1),
    "balanced": Preset(
        step_share=0.25, scheduler="dpm++2m", step_cache=1, guidance_interval=WHOLE_INTERVAL, detect_every=1
    ),
    "fast": Preset(step_share=0.2, scheduler="unipc", step_cache=1, guidance_interval=(0.0, 0.5), detect_every=25),
}


@dataclass(frozen=True)
class Sampling:
    """How latents are sampled, every choice made; the fields are those of SyncSettings."""

    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerName = "ddim"
    step_cache: int = 1
    guidance_interval: tuple[float, float] = WHOLE_INTERVAL

    def guided(self, step: int) -> bool:
        """Return whether a step, the first being 0, is computed with guidance: with and without audio."""
        begin, end = self.guidance_interval
        return self.guidance_scale > 1.0 and begin <= step / self.num_inference_steps < end


@dataclass(frozen=True)
class SyncSettings(Settings):
    """How one clip is lip-synced. `None` leaves the choice to the model or the preset. Raises SettingsError.

    num_inference_steps: 1 to 100. guidance_scale: above 1.0 doubles the work. scheduler: solver of the steps.
    step_cache: the U-Net's deep features are computed in every Nth step and reused in the others; 1 is off.
    guidance_interval: guidance only in steps whose position, 0 for the first and below 1 for the last, is from the
    first number up to the second. resolution: of the crop, px, a multiple of 64. seed: of the noise. loop: what the
    video does when the speech is longer. no_face: pass a frame without a face through, or stop at it (published
    behaviour). detect_every: the face is searched for in the whole of every frame (1), or in the whole of every Nth and
    round its place in the others, which is faster, but landmarks differ by a pixel or two. texture: "generated"
    (published behaviour), or the frame's own ("source") where the generated face agrees with it. match_color: "off"
    (published behaviour), or the generated face gets the frame's colour and light ("source"). crf: x264's constant rate
    factor, 0 (lossless) to 51. x264_preset: how much time goes into a smaller file.
    """

    preset: PresetName = setting(
        "exact", "denoising work against fidelity: all of it, a quarter, or less", group="quality"
    )
    num_inference_steps: int | None = setting(
        None, "denoising steps", group="quality", flag="--steps", metavar="N", low=1, high=100, unset="the model's own"
    )
    guidance_scale: float | None = setting(
        None,
        "weight of the speech (classifier-free guidance); above 1 doubles the work",
        group="quality",
        metavar="G",
        low=0.0,
        high=100.0,
        unset="the model's own",
    )
    scheduler: SchedulerName | None = setting(
        None, "solver of the denoising steps", group="speed", unset="the preset's"
    )
    step_cache: int | None = setting(
        None,
        "compute the U-Net's deep features every Nth step and reuse them in the others; 1: off",
        group="speed",
        metavar="N",
        low=1,
        high=100,
        unset="the preset's",
    )
    guidance_interval: tuple[float, float] | None = setting(
        None,
        "guidance only from this share of the steps to that; 0,1: in all",
        group="speed",
        metavar="A,B",
        unset="the preset's",
    )
    resolution: int | None = setting(
        None, "side of the crop in px", group="quality", metavar="PX", low=64, multiple_of=64, unset="the model's own"
    )
    seed: int = setting(1247, "seed of the noise", group="quality", metavar="N", low=0, high=2**63 - 1)
    loop: Loop = setting(
        "pingpong",
        "speech longer than the video: play it back and forth, hold the last frame, or end there",
        group="input and output",
    )
    no_face: NoFace = setting(
        "pass", "a frame without a face: pass it through unchanged, or stop with an error", group="input and output"
    )
    detect_every: int | None = setting(
        None,
        "search the whole frame for the face every Nth frame only: landmarks move by a pixel or two",
        group="speed",
        metavar="N",
        low=1,
        high=100,
        unset="the preset's",
    )
    texture: Texture | None = setting(
        None,
        "source: the frame's own fine texture where the generated face agrees with it",
        group="quality",
        unset="the model's own",
    )
    match_color: MatchColor | None = setting(
        None,
        "source: the frame's own colour and light on the generated face",
        group="quality",
        unset="the model's own",
    )
    crf: int = setting(18, "x264's quality, 0 (lossless) to 51", group="input and output", metavar="N", low=0, high=51)
    x264_preset: X264Preset = setting(
        "medium", "x264's effort: faster presets encode sooner, a little less faithfully", group="speed"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance_interval is not None:
            begin, end = self.guidance_interval
            if not 0.0 <= begin <= end <= 1.0:
                raise SettingsError(
                    f"guidance_interval = {begin:g},{end:g}: must be two rising numbers from 0 to 1",
                    setting="guidance_interval",
                )

    def sampling(self, model_steps: int, model_scale: float) -> Sampling:
        """Return how a model samples whose own number of steps is `model_steps` and guidance scale `model_scale`."""
        share = max(1, round(model_steps * PRESETS[self.preset].step_share))
        return Sampling(
            num_inference_steps=share if self.num_inference_steps is None else self.num_inference_steps,
            guidance_scale=model_scale if self.guidance_scale is None else self.guidance_scale,
            scheduler=self._or_preset("scheduler"),
            step_cache=self._or_preset("step_cache"),
            guidance_interval=self._or_preset("guidance_interval"),
        )

    def frames_per_detection(self) -> int:
        """Return `detect_every`, with None decided."""
        return int(self._or_preset("detect_every"))

    def _or_preset(self, name: str) -> Any:
        """Return a field as it is set, or else as the preset has it."""
        value = getattr(self, name)
        return getattr(PRESETS[self.preset], name) if value is None else value


@dataclass(frozen=True)
class RuntimeSettings(Settings):
    """What the work runs on. Raises SettingsError.

    precision: of the U-Net, and of the other networks where they have none of their own; "auto" is fp16 on CUDA
    (published behaviour) and fp32 elsewhere. vae_precision, audio_precision: None is as `precision`, with fp16 for
    fp8. quantize: 8-bit weights in all networks; "none" leaves them as the model's files hold them. threads: for face
    work; None takes one per core, up to 8. frame_memory_mb: bound of the frames in flight, MB; where one U-Net call
    needs more, that is taken. batch: windows per U-Net call; "auto" takes as many as free memory allows. compile: run
    the U-Net through torch.compile, which takes minutes before it pays. pruned: the file that lists the U-Net's layers
    to leave out, as `lipstream prune` writes it. engine: what computes the networks; all but torch need an extra, and
    export the model first. vae: the autoencoder; taesd and taesd-decoder are for models with Stable Diffusion's
    latents. triton_url: of the server of engine="triton", HOST:PORT.
    """

    device: str = setting(
        "auto",
        "auto: the first CUDA device, or else the CPU",
        group="hardware",
        metavar="auto|cpu|cuda[:N]|mps",
    )
    precision: Precision = setting("auto", "of the U-Net; auto: fp16 on CUDA, else fp32", group="hardware")
    vae_precision: PrecisionOfOthers | None = setting(None, "of the VAE", group="hardware", unset="as --precision")
    audio_precision: PrecisionOfOthers | None = setting(
        None, "of the audio encoder", group="hardware", unset="as --precision"
    )
    quantize: Quantize = setting(
        "none", "int8: 8-bit weights; int8-dynamic: the linear layers' inputs too", group="hardware"
    )
    detector: DetectorName = setting(
        "auto", "what finds the face; auto: buffalo_s where its files are here, else mediapipe", group="hardware"
    )
    threads: int | None = setting(
        None, "threads for face work", group="hardware", metavar="N", low=1, high=256, unset="one per core, up to 8"
    )
    batch: int | Literal["auto"] = setting(
        1,
        "windows per U-Net call; auto: as many as free GPU memory allows",
        group="hardware",
        metavar="auto|WINDOWS",
        low=1,
        high=256,
    )
    compile: bool = setting(False, "torch.compile the U-Net: minutes first, faster then", group="speed")
    pruned: str | Path | None = setting(
        None, "leave out the U-Net's layers that `lipstream prune` listed", group="speed", metavar="LIST", unset="none"
    )
    engine: EngineName = setting(
        "torch", "what computes the networks; all but torch export the model to ONNX once", group="speed"
    )
    vae: VaeName = setting(
        "own", "the model's own autoencoder, or the small one of SD's latents, both ways or to decode", group="speed"
    )
    triton_url: str | None = setting(
        None, "gRPC address of the server of --engine triton", group="hardware", metavar="HOST:PORT", unset="none"
    )
    frame_memory_mb: int = setting(
        512, "bound of decoded frames in flight", group="hardware", metavar="MB", low=1, high=1_000_000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if _DEVICE.fullmatch(self.device) is None:
            raise SettingsError(f"device = {self.device!r}: must be auto, cpu, cuda, cuda:N or mps", setting="device")
        if (self.engine == "triton") != (self.triton_url is not None):
            raise SettingsError(
                "--engine triton and --triton-url belong together", fix="give both or neither", setting="triton_url"
            )
        if self.engine != "torch" and (self.compile or self.quantize != "none" or self.vae != "own"):
            option = "--compile" if self.compile else "--quantize" if self.quantize != "none" else "--vae"
            raise SettingsError(
                f"{option} is for torch's networks, not for --engine {self.engine}",
                fix="leave it out; int8 graphs are made by lipstream export onnx --int8",
                setting="engine",
            )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
