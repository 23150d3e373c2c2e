"""Find layers of a U-Net that can be dropped: rank them by their effect alone, then drop them one after another."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from lipstream.errors import OutputError, SettingsError
from lipstream.evaluate.quality import Images, ssim
from lipstream.face.registry import make_detector
from lipstream.models.load import load_model
from lipstream.models.prune import Dropped, PruneList, parts, without
from lipstream.models.unet import UNet
from lipstream.profiling.clips import check_run_lengths, prepare
from lipstream.profiling.turns import in_turns, timed
from lipstream.runtime.device import dtypes, torch_device
from lipstream.version import __version__
from lipstream_lab.bench import flops
from lipstream_lab.bench.bench import Report
from lipstream_lab.bench.cases import Parts, Sampling, Setting, make_sampling


@dataclass(frozen=True)
class PruneSettings:
    """What to prune and on which clip. video, speech: None takes the bundled sample's.

    floor: lowest acceptable SSIM of the repainted region against the unpruned model's. duration_s: use this much of the
    speech. repeats: turns in which the sampling loop is timed with and without the dropped layers.
    """

    setting: Setting
    floor: float = 0.97
    video: Path | None = None
    speech: Path | None = None
    duration_s: float = 2.0
    repeats: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise SettingsError(f"floor = {self.floor}: not an SSIM", fix="use a number from 0 to 1", setting="floor")
        check_run_lengths(self.duration_s, self.repeats, [self.setting.sync])
        if self.setting.runtime.pruned is not None:
            raise SettingsError("the search starts from the unpruned model", fix="leave --pruned out", setting="pruned")


@dataclass(frozen=True)
class Candidate:
    """Outcome for one part of the U-Net.

    ssim_alone: SSIM without this part. ssim: without this part and all parts dropped before it; None if not tried,
    because ssim_alone is below the floor or no cross-attention would be left. flop_share: share of the U-Net's
    operations per step that remains after the decision.
    """

    name: str
    ssim_alone: float
    ssim: float | None
    is_dropped: bool
    flop_share: float


@dataclass(frozen=True)
class Pruned:
    """Result of a search: the candidates in order, the list to write, and the times of each turn."""

    candidates: tuple[Candidate, ...]
    prune_list: PruneList
    before_s: tuple[float, ...]
    after_s: tuple[float, ...]


def search(prune: PruneSettings, report: Report) -> Pruned:
    """Rank the parts by their effect alone, drop them in that order, and time the model before and after.

    Raises what loading a model and preparing inputs raise.
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
    similarity = _Similarity(sampling, model.unet)
    ranked = _rank(similarity, report)
    candidates = drop_greedily(ranked, similarity, _FlopShare(setting), prune.floor, report)
    sampled = setting.sync.sampling(model.config.num_inference_steps, model.config.guidance_scale)
    prune_list = PruneList(
        model=model.config.name,
        dropped=tuple(Dropped(c.name, round(c.ssim, 5)) for c in candidates if c.is_dropped and c.ssim is not None),
        floor=prune.floor,
        calibration=inputs.label,
        num_inference_steps=sampled.num_inference_steps,
        guidance_scale=sampled.guidance_scale,
        seed=setting.sync.seed,
        version=__version__,
    )
    unets = {"before": model.unet, "after": without(model.unet, prune_list.names)}
    before_s, after_s = _time_both(sampling, unets, prune.repeats, report)
    return Pruned(candidates, prune_list, before_s, after_s)


class _Similarity:
    """Similarity of a pruned U-Net's images to those of the unpruned one."""

    def __init__(self, sampling: Sampling, unet: UNet) -> None:
        """unet: the unpruned one."""
        self._sampling, self.unet = sampling, unet
        self._reference: Images = sampling.pictures(unet)
        self._untouched: Images = sampling.untouched()

    def of(self, pruned: UNet) -> float:
        """Return the SSIM of the repainted region; 1.0 if it is empty."""
        value = ssim(self._reference, self._sampling.pictures(pruned), self._untouched)
        return 1.0 if value is None else value


class _FlopShare:
    """Counts the share of the U-Net's operations that remains without some parts, for one step of one window."""

    def __init__(self, setting: Setting) -> None:
        self._model = load_model(setting.model, torch.device("meta"), torch.float32)
        self._settings = replace(setting.sync, num_inference_steps=1)
        self._whole = self._count(())

    def without(self, names: Sequence[str]) -> float:
        """Return the share, 0 to 1."""
        return self._count(names) / self._whole

    def _count(self, names: Sequence[str]) -> int:
        pruned = replace(self._model, unet=without(self._model.unet, names))
        window = pruned.config.num_frames
        return flops.of_unet(pruned, self._settings, window, window)


def _rank(similarity: _Similarity, report: Report) -> list[tuple[str, float]]:
    """Return every part with the SSIM without it, the highest first."""
    names, alone = parts(similarity.unet), {}
    for index, name in enumerate(names):
        alone[name] = similarity.of(without(similarity.unet, [name]))
        report(f"alone, {index + 1} of {len(names)}: {name} {alone[name]:.4f}")
    return sorted(alone.items(), key=lambda ranked: -ranked[1])


def drop_greedily(
    ranked: Sequence[tuple[str, float]], similarity: _Similarity, flop_share: _FlopShare, floor: float, report: Report
) -> tuple[Candidate, ...]:
    """Drop one part after another, and restore each without which the SSIM falls below the floor."""
    dropped: list[str] = []
    candidates, share = [], 1.0
    for name, alone in ranked:
        # A part that falls below the floor alone would hardly do better together with others. One cross-attention must
        # stay: the mouth is a small part of the region, so SSIM may be high even if the lips do not move.
        pruned = without(similarity.unet, [*dropped, name])
        together = similarity.of(pruned) if alone >= floor and pruned.uses_audio else None
        is_dropped = together is not None and together >= floor
        if is_dropped:
            dropped.append(name)
            share = flop_share.without(dropped)
        candidates.append(Candidate(name, alone, together, is_dropped, share))
        if together is not None:
            decided = "dropped" if is_dropped else "kept"
            report(f"{decided}: {name} {together:.4f}, {share:.1%} of the operations left")
    return tuple(candidates)


def _time_both(
    sampling: Sampling, unets: dict[str, UNet], repeats: int, report: Report
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return seconds per turn of the sampling loop over the clip, with the unpruned and with the pruned U-Net."""
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    for turn, (name, unet) in in_turns(tuple(unets.items()), repeats):
        seconds[name].append(timed(partial(sampling.run, unet), sampling.noise.device).wall_s)
        report(f"turn {turn} of {repeats}: {name} {seconds[name][-1]:.3f} s")
    return tuple(seconds["before"]), tuple(seconds["after"])


def check_list(path: Path, *, overwrite: bool) -> None:
    """Check, before anything is run, that the list can be written. Raises OutputError."""
    if not path.parent.is_dir():
        raise OutputError("its folder does not exist", file=path, fix=f"create {path.parent}")
    if path.exists() and not overwrite:
        raise OutputError("already exists", file=path, fix="choose another file with -o, or add --overwrite")


def table(pruned: Pruned) -> str:
    """Format the candidates in order, and the outcome."""
    width = max(len(one.name) for one in pruned.candidates)
    lines = [f"{'layer':{width}}   alone  with those above   operations left"]
    for one in pruned.candidates:
        together = "not tried" if one.ssim is None else f"{one.ssim:.4f}"
        decided = "dropped" if one.is_dropped else "kept"
        lines.append(f"{one.name:{width}}  {one.ssim_alone:.4f}  {together:>17}  {one.flop_share:>14.1%}   {decided}")
    prune_list = pruned.prune_list
    last = prune_list.dropped[-1].ssim if prune_list.dropped else 1.0
    before, after = _spread(pruned.before_s), _spread(pruned.after_s)
    lines.append(
        f"{len(prune_list.dropped)} of {len(pruned.candidates)} layers dropped,"
        f" SSIM {last:.4f} (floor {prune_list.floor:g})"
    )
    lines.append(f"sampling {prune_list.calibration}: {before} before, {after} after")
    return "\n".join(lines)


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"
