"""The measures of a clip by name, wherever they are computed: `evaluate`, `compare`, `bench`, `tune`. Imports no torch.

docs/quality.md says what each can and cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """A measure: its name, what it is in a few words, its unit, and which values are better, if either is."""

    name: str
    title: str
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "neither"
    digits: int = 4


_IN_ORDER = (
    Measure("sync_c", "SyncNet's confidence (Sync-C)", better="higher", digits=3),
    Measure("sync_d", "SyncNet's distance (Sync-D)", better="lower", digits=3),
    Measure("sync_offset", "picture after speech, by SyncNet", "frames", digits=1),
    Measure("loudness_correlation", "mouth opening with the speech's loudness, r", better="higher", digits=3),
    Measure("open_in_silence", "share of silent frames with an open mouth", better="lower", digits=3),
    Measure("reference_open_in_silence", "the same of the reference", digits=3),
    Measure("silence_opening", "mouth opening in silence", "face heights", better="lower"),
    Measure("leakage", "mouth opening with the source's, loudness held fixed, r", better="lower", digits=3),
    Measure("landmark_distance", "inner lips' distance", "face heights", better="lower"),
    Measure("opening_correlation", "mouth opening with the reference's, r", better="higher", digits=3),
    Measure("psnr_db", "PSNR of the repainted region", "dB", better="higher", digits=2),
    Measure("ssim", "SSIM of the repainted region", better="higher"),
    Measure("face_psnr_db", "PSNR of the face", "dB", better="higher", digits=2),
    Measure("face_ssim", "SSIM of the face", better="higher"),
    Measure("lpips", "LPIPS of the face", better="lower"),
    Measure("identity", "likeness of the face embedding, cosine", better="higher", digits=3),
    Measure("sharpness", "Laplacian energy of the repainted region", "levels²", digits=1),
    Measure("reference_sharpness", "the same of the reference", "levels²", digits=1),
    Measure("flicker", "second difference over time, repainted region", "levels", digits=3),
    Measure("reference_flicker", "the same of the reference", "levels", digits=3),
    Measure("edge_step", "colour step at the mask's edge", "levels", digits=2),
    Measure("reference_edge_step", "the same of the reference", "levels", digits=2),
)

MEASURES = {measure.name: measure for measure in _IN_ORDER}

COUNTS = ("frames", "frames_without_face", "silent_frames")
"""Whole numbers beside them."""
