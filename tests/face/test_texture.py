"""The frame's own texture: whole where nothing was repainted, gone where the mouth is another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.face import picture
from lipstream.diffusion.mask import face_mask, mouth_region
from lipstream.errors import ModelError, SettingsError
from lipstream.face.align import crop_face, similarity_transform, template
from lipstream.face.composite import paste_face, resize_face
from lipstream.face.texture import keep_texture
from lipstream.models.catalogue import ModelConfig
from lipstream.models.load import read_config, read_config_values
from lipstream.settings import SyncSettings

SIDE = 128


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    config, _ = read_config("tiny")
    return face_mask(config.mask_polygon_xy, config.mask_size, SIDE)


def grainy(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-40, 40, (height, width, 3))
    return (picture(height, width) * 0.6 + 50 + noise).clip(0, 255).astype(np.uint8)


def on_a_frame() -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """A frame with grain finer than the crop, an affine matrix that the face is three times as large as, the crop."""
    frame = grainy(480, 400)
    points = template(SIDE)
    matrix, _ = similarity_transform((points - points.mean(0)) * 3 + [200, 200], points)
    return frame, matrix, crop_face(frame, matrix, SIDE).float()[None] / 127.5 - 1


def paste(frame: np.ndarray, face: torch.Tensor, matrix: np.ndarray) -> np.ndarray:
    return paste_face(frame, resize_face(face)[0], matrix)


def test_a_face_generated_as_it_was_leaves_the_frame_as_it_was(mask: torch.Tensor) -> None:
    frame, matrix, crop = on_a_frame()
    kept = paste(frame, keep_texture(crop, crop, mask), matrix)
    assert np.abs(kept.astype(int) - frame).max() <= 1
    assert np.abs(paste(frame, crop, matrix).astype(int) - frame).mean() > 5  # which painting alone does not


def test_a_slight_change_is_made_and_the_grain_stays(mask: torch.Tensor) -> None:
    frame, matrix, crop = on_a_frame()
    kept = paste(frame, keep_texture(crop + 0.04 * (1 - mask), crop, mask), matrix).astype(float)
    change, chin = kept - frame, (slice(405, 430), slice(200, 270))
    assert change[chin].mean() == pytest.approx(0.04 * 127.5, abs=1.2)  # levels are truncated, as published
    assert change[chin].std() < frame[chin].std() / 10


def test_another_mouth_is_the_models_alone(mask: torch.Tensor) -> None:
    _, _, crop = on_a_frame()
    region = mouth_region(SIDE) * (1 - mask)
    generated = torch.lerp(crop, torch.full_like(crop, -0.9), region)
    textured = keep_texture(generated, crop, mask)[0]
    centre = (slice(None), slice(66, 78), slice(54, 74))
    assert float(textured[3:][centre].max()) < 0.01
    torch.testing.assert_close(textured[:3][centre], generated[0][centre], atol=0.02, rtol=0)


def test_the_mouth_tolerates_less_difference_than_the_rest() -> None:
    crop = torch.zeros(1, 3, SIDE, SIDE)
    share = keep_texture(crop + 0.04, crop, torch.zeros(1, SIDE, SIDE))[0, 3]
    assert float(share[71, 64]) == pytest.approx(np.exp(-((0.04 / 0.04) ** 2)), abs=0.02)  # the mouth's centre
    assert float(share[5, 5]) == pytest.approx(np.exp(-((0.04 / 0.3) ** 2)), abs=0.02)


def test_the_texture_is_the_models_some_way_round_a_difference() -> None:
    crop = torch.zeros(1, 3, SIDE, SIDE)
    changed = crop.clone()
    changed[..., :64] = 0.5
    share = keep_texture(changed, crop, torch.zeros(1, SIDE, SIDE))[0, 3, 4].numpy()  # a row far above the mouth

    taps = np.exp(-np.square(np.arange(-8, 9) / 2.5) / 2)
    taps /= taps.sum()

    def blurred(line: np.ndarray) -> np.ndarray:
        return np.convolve(np.pad(line, 8, mode="edge"), taps, mode="valid")

    difference = blurred(np.where(np.arange(SIDE) < 64, 0.5, 0.0))
    reached = np.array([difference[max(0, i - 2) : i + 3].max() for i in range(SIDE)])
    expected = np.exp(-np.square(blurred(reached) / 0.3))
    np.testing.assert_allclose(share, expected, atol=0.02)


def test_a_difference_in_one_channel_counts_in_full() -> None:
    crop = torch.zeros(1, 3, SIDE, SIDE)
    redder = crop + torch.tensor([0.3, 0.0, 0.0])[:, None, None]
    share = keep_texture(redder, crop, torch.zeros(1, SIDE, SIDE))[0, 3]
    assert float(share[5, 5]) == pytest.approx(np.exp(-1), abs=0.02)


def test_the_mouth_is_where_an_aligned_crop_has_it() -> None:
    region = mouth_region(256)[0]
    inside, outside = [(128, 143), (84, 143), (172, 143), (128, 118), (128, 168)], [(128, 90), (40, 143), (128, 210)]
    assert min(float(region[y, x]) for x, y in inside) > 0.7  # as wide as the lips, not as high
    assert max(float(region[y, x]) for x, y in outside) < 0.2


def test_what_the_model_makes_of_kept_pixels_takes_no_texture_from_them() -> None:
    crop = torch.zeros(1, 3, SIDE, SIDE)
    mask = torch.ones(1, SIDE, SIDE)
    mask[:, SIDE // 2 :] = 0
    share = keep_texture(crop + 0.5, crop, mask)[0, 3]
    assert float(share[:48].min()) == 1.0
    assert float(share[90:].max()) < 0.1


def test_beyond_the_mask_the_frame_is_kept(mask: torch.Tensor) -> None:
    _, _, crop = on_a_frame()
    generated = crop * mask - (1 - mask)
    share = keep_texture(generated, crop, mask)[0, 3]
    assert float(share[:30].min()) == 1.0
    assert share.min() >= 0


@pytest.mark.parametrize("side", [64, 256])
def test_any_resolution_and_any_number(side: int) -> None:
    crops = torch.from_numpy(np.stack([grainy(side, side, seed) for seed in range(3)])).permute(0, 3, 1, 2) / 127.5 - 1
    mask = torch.zeros(1, side, side)
    together = keep_texture(crops.flip(1), crops, mask)
    assert together.shape == (3, 4, side, side)
    for one, generated, crop in zip(together, crops.flip(1), crops, strict=True):
        torch.testing.assert_close(keep_texture(generated[None], crop[None], mask)[0], one)


def test_no_share_of_the_frame_is_plain_pasting() -> None:
    frame, matrix, _ = on_a_frame()
    smooth = torch.from_numpy(picture(SIDE, SIDE)).permute(2, 0, 1)[None] / 127.5 - 1
    plain = paste(frame, smooth, matrix).astype(float)
    finer = paste(frame, torch.cat((smooth, torch.zeros(1, 1, SIDE, SIDE)), 1), matrix)
    assert np.abs(plain - finer).mean() < 1.5


def test_who_chooses() -> None:
    assert read_config("latentsync-1.6")[0].texture == "generated"  # the published computation
    assert read_config("tiny")[0].texture == "source"
    words, origin, _ = read_config_values("tiny")
    with pytest.raises(ModelError, match="texture 'silk' is not one of generated, source"):
        ModelConfig.from_dict({**words, "texture": "silk"}, origin)
    with pytest.raises(SettingsError, match="texture"):
        SyncSettings(texture="silk")  # type: ignore[arg-type]
