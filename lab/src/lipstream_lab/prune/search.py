"""Which layers of a U-Net can be left out: each judged alone, then dropped one after another above a floor."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lipstream.errors import OutputError, SettingsError
from lipstream.evaluate.quality import Images, ssim
from lipstream.face.registry import make_detector
from lipstream.models.load import load_model
from lipstream.models.prune import Dropped, PruneList, parts, without
from lipstream.models.unet import UNet
from lipstream.profiling import machine
from lipstream.runtime.device import dtypes, torch_device
from lipstream.settings import FRAME_RATE_HZ
from lipstream.version import __version__
from lipstream_lab.bench import flops
from lipstream_lab.bench.bench import Tell
from lipstream_lab.bench.cases import Parts, Sampling, Setting, make_sampling
from lipstream_lab.bench.clips import prepare


@dataclass(frozen=True)
class PruneSettings:
    """What is pruned and on what clip. video and speech None: the bundled sample's.

    floor: SSIM of the repainted region beside the whole model's, at least. duration_s: of the speech. repeats: turns
    in which the sampling loop is timed with and without what was dropped.
    """

    setting: Setting
    floor: float = 0.97
    video: Path | None = None
    speech: Path | None = None
    duration_s: float = 2.0
    repeats: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise SettingsError(f"floor = {self.floor}: must be from 0 to 1")
        if self.duration_s * FRAME_RATE_HZ < 1:
            raise SettingsError(f"seconds = {self.duration_s}: must be at least {1 / FRAME_RATE_HZ}, one frame")
        if self.repeats < 1:
            raise SettingsError(f"repeats = {self.repeats}: must be at least 1")
        if self.setting.sync.loop == "trim":
            raise SettingsError("loop = 'trim': pruning takes all the speech's frames; use pingpong or hold")
        if self.setting.runtime.pruned is not None:
            raise SettingsError("pruned: pruning begins with the whole model; leave --pruned out")


@dataclass(frozen=True)
class Tried:
    """One part of the U-Net. ssim_alone: with this one left out; ssim: with all before it that were dropped, and it.

    ssim is None where it was not tried: alone it falls below the floor, or it is the last with cross-attention.
    flop_share: of the U-Net's operations per step, what is left after it was decided on.
    """

    name: str
    ssim_alone: float
    ssim: float | None
    is_dropped: bool
    flop_share: float


@dataclass(frozen=True)
class Pruned:
    """What a search found: every part in the order it was tried, the list to write, and seconds of the turns."""

    tried: tuple[Tried, ...]
    found: PruneList
    seconds_before: tuple[float, ...]
    seconds_after: tuple[float, ...]


def search(prune: PruneSettings, tell: Tell) -> Pruned:
    """Rank the parts by what each alone changes, drop them in that order, and time what is left beside the whole.

    `tell` receives lines of progress. Raises what loading and syncing raise.
    """
    setting = prune.setting
    device = torch_device(setting.runtime)
    with tempfile.TemporaryDirectory(prefix="lipstream-prune-") as folder:
        inputs = prepare(Path(folder), prune.video, prune.speech, duration_s=prune.duration_s, synthetic=None)
        runtime = setting.runtime
        model = load_model(setting.model, device, dtypes(runtime, device), quantize=runtime.quantize)
        detector = make_detector(setting.runtime.detector, device)
        try:
            sampling = make_sampling(setting, Parts(model, detector), inputs)
        finally:
            detector.close()
    likeness = _Likeness(sampling)
    tried = drop_in_turn(_rank(likeness, tell), likeness, _FlopShare(setting), prune.floor, tell)
    sampled = setting.sync.sampling(model.config.num_inference_steps, model.config.guidance_scale)
    found = PruneList(
        model=model.config.name,
        dropped=tuple(Dropped(t.name, round(t.ssim, 5)) for t in tried if t.is_dropped and t.ssim is not None),
        floor=prune.floor,
        calibration=inputs.label,
        num_inference_steps=sampled.num_inference_steps,
        guidance_scale=sampled.guidance_scale,
        seed=setting.sync.seed,
        version=__version__,
    )
    before_s, after_s = _take_turns(sampling, without(model.unet, found.names), prune.repeats, tell)
    return Pruned(tried, found, before_s, after_s)


class _Likeness:
    """How like the whole U-Net's pictures those of a lesser one are."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._reference: Images = sampling.pictures(self.unet)
        self._untouched: Images = sampling.untouched()

    @property
    def unet(self) -> UNet:
        """The whole one."""
        return self._sampling.model.unet

    def of(self, lesser: UNet) -> float:
        """SSIM of the repainted region; 1.0 where no pixel is repainted."""
        likeness = ssim(self._reference, self._sampling.pictures(lesser), self._untouched)
        return 1.0 if likeness is None else likeness


class _FlopShare:
    """What share of the whole U-Net's operations is left without some of its parts: one step of one window."""

    def __init__(self, setting: Setting) -> None:
        self._model = load_model(setting.model, torch.device("meta"), torch.float32)
        self._settings = replace(setting.sync, num_inference_steps=1)
        self._whole = self._count(())

    def without(self, names: Sequence[str]) -> float:
        """From 0 to 1."""
        return self._count(names) / self._whole

    def _count(self, names: Sequence[str]) -> int:
        lesser = replace(self._model, unet=without(self._model.unet, names))
        window = lesser.config.num_frames
        return flops.of_unet(lesser, self._settings, window, window)


def _rank(likeness: _Likeness, tell: Tell) -> list[tuple[str, float]]:
    """Every part and the SSIM without it alone, what changes least first."""
    names, alone = parts(likeness.unet), {}
    for index, name in enumerate(names):
        alone[name] = likeness.of(without(likeness.unet, [name]))
        tell(f"alone, {index + 1} of {len(names)}: {name} {alone[name]:.4f}")
    return sorted(alone.items(), key=lambda ranked: -ranked[1])


def drop_in_turn(
    ranked: Sequence[tuple[str, float]], likeness: _Likeness, flop_share: _FlopShare, floor: float, tell: Tell
) -> tuple[Tried, ...]:
    """Leave out one part after another, and put back each with which the SSIM falls below the floor."""
    dropped: list[str] = []
    tried, share = [], 1.0
    for name, alone in ranked:
        # One that falls below the floor alone would hardly do better with others gone too. A mouth is small beside the
        # region: its SSIM may be high with a U-Net without cross-attention, which moves no lips.
        lesser = without(likeness.unet, [*dropped, name])
        together = likeness.of(lesser) if alone >= floor and lesser.uses_audio else None
        is_dropped = together is not None and together >= floor
        if is_dropped:
            dropped.append(name)
            share = flop_share.without(dropped)
        tried.append(Tried(name, alone, together, is_dropped, share))
        if together is not None:
            decided = "dropped" if is_dropped else "put back"
            tell(f"{decided}: {name} {together:.4f}, {share:.1%} of the operations left")
    return tuple(tried)


def _take_turns(
    sampling: Sampling, lesser: UNet, repeats: int, tell: Tell
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of the sampling loop over the clip, with the whole U-Net and with the lesser one, in turns."""
    device = sampling.noise.device
    runs: list[tuple[Callable[[], object], list[float]]] = [
        (lambda: sampling.run(sampling.model.unet), []),
        (lambda: sampling.run(lesser), []),
    ]
    for turn in range(repeats):
        # There and back: what grows warmer or slower over time meets both alike.
        for work, seconds in runs if turn % 2 == 0 else reversed(runs):
            machine.wait_for(device)
            begun_s = time.perf_counter()
            work()
            machine.wait_for(device)
            seconds.append(time.perf_counter() - begun_s)
        before, after = (seconds[-1] for _, seconds in runs)
        tell(f"turn {turn + 1} of {repeats}: {before:.3f} s before, {after:.3f} s after")
    return tuple(runs[0][1]), tuple(runs[1][1])


def check_list(path: Path, *, overwrite: bool) -> None:
    """Refuse, before anything is run, a file that cannot be written. Raises OutputError."""
    if not path.parent.is_dir():
        raise OutputError(f"{path}: its folder does not exist; create {path.parent} first")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: already exists; name another file with -o or add --overwrite")


def table(pruned: Pruned) -> str:
    """The parts in the order they were tried, and what came of it."""
    width = max(len(one.name) for one in pruned.tried)
    lines = [f"{'layer':{width}}   alone  with those before  operations left"]
    for one in pruned.tried:
        together = "not tried" if one.ssim is None else f"{one.ssim:.4f}"
        decided = "dropped" if one.is_dropped else "kept"
        lines.append(f"{one.name:{width}}  {one.ssim_alone:.4f}  {together:>17}  {one.flop_share:>14.1%}   {decided}")
    found = pruned.found
    last = found.dropped[-1].ssim if found.dropped else 1.0
    before, after = _spread(pruned.seconds_before), _spread(pruned.seconds_after)
    lines.append(f"{len(found.dropped)} of {len(pruned.tried)} layers dropped, SSIM {last:.4f} (floor {found.floor:g})")
    lines.append(f"sampling {found.calibration}: {before} before, {after} after")
    return "\n".join(lines)


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"
