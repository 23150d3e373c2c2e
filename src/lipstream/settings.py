"""What can be chosen: frozen records whose fields carry their option, choices, range and help, and the presets.

The command line builds its options from these fields, so that a default or a sentence of help is written once. Imports
no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from lipstream.encoding_settings import EncodingSettings
from lipstream.errors import SettingsError
from lipstream.presets import PRESETS, PresetName, Sampling, SchedulerName
from lipstream.settings_record import Settings, setting

Texture = Literal["generated", "source"]
MatchColor = Literal["off", "source"]
Loop = Literal["pingpong", "hold", "trim", "loop", "remap"]
Silence = Literal["model", "closed", "keep"]
NoFace = Literal["pass", "error"]
Deinterlace = Literal["auto", "always", "never"]
Tracking = Literal["people", "off"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "fp8"]
PrecisionOfOthers = Literal["auto", "fp32", "fp16", "bf16"]
Quantize = Literal["none", "int8", "int8-dynamic"]
VaeName = Literal["own", "taesd", "taesd-decoder"]
EngineName = Literal["torch", "onnxruntime", "openvino", "tensorrt", "triton"]
OnnxProvider = Literal["auto", "cpu", "cuda", "tensorrt"]
DetectorName = Literal["auto", "buffalo_s", "buffalo_l", "mediapipe"]

FRAME_RATE_HZ = 25

NTSC_HZ = {f"{n / 1.001:.{digits}f}": Fraction(n * 1000, 1001) for n in (24, 30, 60) for digits in (2, 3)}
"""What 23.98, 29.97 and the like stand for."""

_LEAST_OWN_HZ, _MOST_HZ = 20, 120  # below the first (a slide show, a slow screen recording) a mouth would stutter

_FACE = re.compile(r"largest|left|right|\d{1,3}|\d{1,9}(\.\d+)?,\d{1,9}(\.\d+)?(@\d{1,9})?", re.ASCII)
_NUMBER = re.compile(r"\d{1,6}(\.\d{1,6})?|\d{1,9}/[1-9]\d{0,8}", re.ASCII)
_DEVICE = re.compile(r"auto|(cpu|cuda|mps)(:[0-9]+)?")

ALL_DEVICES = "cuda:all"
"""Every CUDA device of the machine, where several devices may be named."""


@dataclass(frozen=True)
class SyncSettings(EncodingSettings):
    """How one clip is lip-synced, and encoded: see EncodingSettings. Raises SettingsError.

    `None` leaves the choice to the model or the preset.

    num_inference_steps: 1 to 100. guidance_scale: above 1.0 doubles the work. scheduler: solver of the steps.
    step_cache: the U-Net's deep features are computed in every Nth step and reused in the others; 1 is off.
    guidance_interval: guidance only in steps whose position, 0 for the first and below 1 for the last, is from the
    first number up to the second. resolution: of the crop, px, a multiple of 64. seed: of the noise. loop: what the
    video does when the speech is longer. audio_track: of a recording with several, from 0; None: the default one.
    no_face: pass a frame without a face through, or stop at it (published behaviour). detect_every: the face is
    searched for in the whole of every frame (1), or in the whole of every Nth and round its place in the others, which
    is faster, but landmarks differ by a pixel or two. texture: "generated" (published behaviour), or the frame's own
    ("source") where the generated face agrees with it. match_color: "off" (published behaviour), or the generated face
    gets the frame's colour and light ("source"). strip_metadata: copy nothing but the picture.
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
        "speech longer than the video: play it back and forth, hold the last frame, end there (trim), play it from its"
        " start again (loop), or slow it down (remap)",
        group="input and output",
    )
    silence: Silence = setting(
        "model",
        "pauses in the speech: as the model has them, a closed mouth, or the frames as filmed",
        group="quality",
    )
    audio_overlap: float | None = setting(
        None,
        "what two blocks of 30 s of the audio encoder share: features beside a block's end know what follows",
        group="quality",
        metavar="S",
        low=0.0,
        high=10.0,
        unset="1 for the bundled model, 0 for the published ones",
    )
    frame_rate: str | None = setting(
        None,
        "frames a second of the result: source for the video's own, or a number",
        group="input and output",
        metavar="source|N",
        unset="source for the bundled model, 25 for the published ones",
    )
    deinterlace: Deinterlace = setting(
        "auto", "interlaced video: make frames that say so whole, or all, or none", group="input and output"
    )
    audio_track: int | None = setting(
        None,
        "sound track of a file that has several, the first being 0",
        group="input and output",
        metavar="N",
        low=0,
        high=999,
        unset="the default one",
    )
    no_face: NoFace = setting(
        "pass", "a frame without a face: pass it through unchanged, or stop with an error", group="input and output"
    )
    face: str | None = setting(
        None,
        "the person to sync: largest, left, right, a number from the left (the first is 0), or who is at a point in px",
        group="input and output",
        metavar="WHO|N|X,Y[@FRAME]",
        unset="largest",
    )
    tracking: Tracking | None = setting(
        None,
        "people: keep to one person, begin again at cuts, bridge short gaps and fade at long ones; off: as published",
        group="quality",
        unset="people, but off in preset exact of a published model",
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
    strip_metadata: bool = setting(
        False, "copy no tags, chapters, subtitles and other sound tracks of the video", group="input and output"
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
        if self.frame_rate is not None:
            self.rate_hz(Fraction(0), model_departs=False)
        if self.face is not None and _FACE.fullmatch(self.face) is None:
            wanted = "largest, left, right, a number from the left, X,Y or X,Y@FRAME"
            raise SettingsError(f"face = {self.face!r}: must be {wanted}", setting="face")
        if self.face is not None and self.tracking == "off":
            raise SettingsError(f"face = {self.face}: needs tracking", fix="leave out --tracking off", setting="face")

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

    def rate_hz(self, nominal_hz: Fraction, *, model_departs: bool) -> Fraction:
        """Return the result's frames a second. nominal_hz: the video's own, 0 where unknown. Raises SettingsError."""
        chosen = self.frame_rate
        if chosen is None:
            chosen = "source" if model_departs else str(FRAME_RATE_HZ)
        if chosen == "source":
            return nominal_hz if _LEAST_OWN_HZ <= nominal_hz <= _MOST_HZ else Fraction(FRAME_RATE_HZ)
        if _NUMBER.fullmatch(chosen) is None or not 1 <= Fraction(chosen) <= _MOST_HZ:
            raise SettingsError(
                f"frame_rate = {chosen!r}: must be source, or a number from 1 to {_MOST_HZ}", setting="frame_rate"
            )
        return NTSC_HZ.get(chosen, Fraction(chosen))

    def overlap_s(self, model_departs: bool) -> float:
        """Return `audio_overlap`, with None decided; see ModelConfig.departs."""
        return float(model_departs) if self.audio_overlap is None else self.audio_overlap

    def follows(self, model_departs: bool) -> bool:
        """Return whether one person is followed, with windows that end at cuts; see ModelConfig.departs."""
        if self.tracking is not None or self.face is not None:
            return self.tracking != "off"
        return model_departs or self.preset != "exact"

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
    export the model first. provider: ONNX Runtime's execution provider. vae: the autoencoder; taesd and taesd-decoder
    are for models with Stable Diffusion's latents. triton_url: of the server of engine="triton", HOST:PORT.
    c2pa_certificate, c2pa_key: PEM files, with which results are signed as C2PA says; None: those that
    LIPSTREAM_C2PA_CERTIFICATE and LIPSTREAM_C2PA_KEY name, if any.
    """

    device: str = setting(
        "auto",
        "auto: the first CUDA device, or else the CPU; sync and batch take several, cuda:0,cuda:1 or cuda:all",
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
    provider: OnnxProvider = setting(
        "auto", "what --engine onnxruntime computes with: the device's own, or TensorRT on a GPU", group="speed"
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
    c2pa_certificate: str | Path | None = setting(
        None,
        "sign the result with this chain of certificates (PEM), as C2PA says; test: with one made on the spot",
        group="input and output",
        metavar="FILE|test",
        unset="$LIPSTREAM_C2PA_CERTIFICATE, or not at all",
    )
    c2pa_key: str | Path | None = setting(
        None,
        "private key of --c2pa-certificate (PEM)",
        group="input and output",
        metavar="FILE",
        unset="$LIPSTREAM_C2PA_KEY",
    )
    no_c2pa: bool = setting(False, "don't sign, whatever certificate is configured", group="input and output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if _DEVICE.fullmatch(self.device) is None:
            raise SettingsError(f"device = {self.device!r}: must be auto, cpu, cuda, cuda:N or mps", setting="device")
        if (self.engine == "triton") != (self.triton_url is not None):
            raise SettingsError(
                "--engine triton and --triton-url belong together", fix="give both or neither", setting="triton_url"
            )
        if self.provider != "auto" and self.engine != "onnxruntime":
            raise SettingsError(
                f"provider = {self.provider!r} is for --engine onnxruntime", fix="leave it out", setting="provider"
            )
        if self.engine != "torch" and (self.compile or self.quantize != "none" or self.vae != "own"):
            option = "--compile" if self.compile else "--quantize" if self.quantize != "none" else "--vae"
            raise SettingsError(
                f"{option} is for torch's networks, not for --engine {self.engine}",
                fix="leave it out; int8 graphs are made by lipstream export onnx --int8",
                setting="engine",
            )


def device_names(text: str) -> tuple[str, ...]:
    """Return the devices that an option names, separated by commas; `cuda:all` stands by itself.

    Raises SettingsError for one that is none.
    """
    names = tuple(name.strip() for name in text.split(","))
    if names == (ALL_DEVICES,):
        return names
    for name in names:
        if _DEVICE.fullmatch(name) is None:
            raise SettingsError(
                f"--device {text}: must be cpu, cuda, cuda:N or mps, several with commas, or {ALL_DEVICES}",
                setting="device",
            )
    return names
