"""The frame's colour on the generated face: a shift of the model's is taken back, a new mouth and a new jaw stay."""

from __future__ import annotations

import pytest
import torch

from helpers.face import picture
from lipstream.diffusion.mask import mouth_region
from lipstream.errors import ModelError, SettingsError
from lipstream.face.color import match_color
from lipstream.models.catalogue import ModelConfig
from lipstream.models.load import read_config, read_config_values
from lipstream.settings import SyncSettings


def crop(side: int = 128) -> torch.Tensor:
    return torch.from_numpy(picture(side, side)).permute(2, 0, 1)[None] / 127.5 * 0.8 - 0.8


def shifted(pixels: torch.Tensor, rgb: tuple[float, float, float]) -> torch.Tensor:
    return pixels + torch.tensor(rgb)[:, None, None]


@pytest.mark.parametrize("side", [64, 128, 512])
def test_a_redder_face_is_made_as_red_as_the_frame(side: int) -> None:
    pixels = crop(side)
    matched = match_color(shifted(pixels, (0.08, 0.02, -0.04)), pixels)
    assert float((matched - pixels).abs().max()) * 127.5 < 1.0


def test_the_shift_may_differ_from_place_to_place() -> None:
    pixels = crop()
    slope = torch.linspace(-0.1, 0.1, 128)[:, None]
    error = (match_color(pixels + slope, pixels) - pixels).abs() * 127.5
    assert float(error[..., 8:-8, :].max()) < 3
    assert float(slope.abs().max()) * 127.5 > 12


def test_another_mouth_stays_another() -> None:
    """The old mouth has little say in the new one, and a shift is taken back there too."""
    pixels = crop()
    inside = (mouth_region(128) > 0.5).expand_as(pixels)
    opened = torch.lerp(pixels, torch.full_like(pixels, -0.9), mouth_region(128))
    new = (opened - pixels)[inside].abs().mean()
    assert (match_color(opened, pixels) - opened)[inside].abs().mean() < 0.15 * new
    redder = match_color(shifted(opened, (0.1, 0.0, 0.0)), pixels)
    assert (redder - opened)[inside].abs().mean() < 0.15 * new
    assert abs(float((redder - match_color(opened, pixels))[:, 0].mean())) < 0.01


def test_teeth_take_the_light_of_the_correction_and_not_its_colour() -> None:
    skin = torch.tensor([0.6, 0.2, 0.0])[:, None, None].expand(1, 3, 128, 128)
    teeth = torch.lerp(skin, torch.full_like(skin, 0.7), (mouth_region(128) > 0.8).float())
    matched = match_color(shifted(teeth, (0.12, 0.0, 0.0)), skin)[0, :, 71, 64]
    torch.testing.assert_close(matched, torch.tensor([0.78, 0.66, 0.66]), atol=0.02, rtol=0)
    beside = match_color(shifted(teeth, (0.12, 0.0, 0.0)), skin)[0, :, 110, 64]
    torch.testing.assert_close(beside, skin[0, :, 110, 64], atol=0.01, rtol=0)


def test_what_differs_much_is_not_pulled_back() -> None:
    """A jaw that has moved shows another thing, not the same in another colour."""
    pixels = torch.full((1, 3, 128, 128), -0.5)
    moved = pixels.clone()
    moved[..., 96:, 40:88] = 0.6
    torch.testing.assert_close(
        match_color(moved, pixels)[..., 104:120, 52:76], moved[..., 104:120, 52:76], atol=0.02, rtol=0
    )


def test_every_frame_is_matched_by_itself() -> None:
    pixels = torch.cat((crop(), crop().flip(1), crop().flip(-1)))
    generated = shifted(pixels, (0.05, -0.05, 0.1)).roll(1, -1)
    together = match_color(generated, pixels)
    for one, made, filmed in zip(together, generated, pixels, strict=True):
        torch.testing.assert_close(match_color(made[None], filmed[None])[0], one)


def test_who_chooses() -> None:
    assert read_config("latentsync-1.6")[0].match_color == "off"  # the published computation
    assert read_config("tiny")[0].match_color == "source"
    words, origin, _ = read_config_values("tiny")
    with pytest.raises(ModelError, match="match_color 'on' is not one of off, source"):
        ModelConfig.from_dict({**words, "match_color": "on"}, origin)
    with pytest.raises(SettingsError, match="match_color"):
        SyncSettings(match_color="on")  # type: ignore[arg-type]
