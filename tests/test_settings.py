"""Settings: what they accept, what they refuse, and their way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lipstream.cli import options
from lipstream.cli.main import full_parser
from lipstream.errors import SettingsError
from lipstream.settings import RuntimeSettings, SyncSettings
from lipstream.settings_record import Settings


@pytest.mark.parametrize(
    "settings",
    [
        SyncSettings(),
        SyncSettings(num_inference_steps=7, guidance_scale=2, guidance_interval=(0, 0.5), texture="generated", seed=3),
        RuntimeSettings(),
        RuntimeSettings(device="cpu", batch="auto", vae_precision="bf16", pruned="some/list.json", compile=True),
    ],
)
def test_settings_survive_json_and_can_be_keys(settings: Settings) -> None:
    again = type(settings).from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again == settings
    assert {again: 1}[settings] == 1


def test_values_come_in_the_declared_type() -> None:
    settings = SyncSettings(num_inference_steps=20.0, guidance_scale=2, guidance_interval=[0, 1])  # type: ignore[arg-type]
    assert isinstance(settings.num_inference_steps, int)
    assert isinstance(settings.guidance_scale, float)
    assert settings.guidance_interval == (0.0, 1.0)


@pytest.mark.parametrize(
    ("record", "values", "message"),
    [
        (SyncSettings, {"num_inference_steps": 20.5}, "num_inference_steps = 20.5: must be a whole number"),
        (SyncSettings, {"num_inference_steps": "20"}, "num_inference_steps = '20': must be a whole number"),
        (SyncSettings, {"num_inference_steps": 101}, "must be from 1 to 100"),
        (SyncSettings, {"detect_every": True}, "detect_every = True: must be a whole number"),
        (SyncSettings, {"crf": None}, "crf = None"),
        (SyncSettings, {"guidance_scale": float("nan")}, "must be a number"),
        (SyncSettings, {"guidance_interval": 0.5}, "guidance_interval = 0.5: must be two numbers"),
        (SyncSettings, {"guidance_interval": (0.5, 0.2)}, "two rising numbers"),
        (SyncSettings, {"preset": "best"}, "preset = 'best': must be one of exact, balanced, fast"),
        (SyncSettings, {"resolution": 100}, "a multiple of 64, from 64 up"),
        (RuntimeSettings, {"batch": "some"}, "batch = 'some': must be auto or a whole number"),
        (RuntimeSettings, {"batch": 0}, "batch = 0: must be from 1 to 256"),
        (RuntimeSettings, {"vae_precision": "fp8"}, "must be one of auto, fp32, fp16, bf16"),
        (RuntimeSettings, {"device": 0}, "device = 0: must be text"),
        (RuntimeSettings, {"compile": 1}, "compile = 1: must be true or false"),
    ],
)
def test_what_makes_no_sense_is_a_settings_error(record: type[Settings], values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("[", r"\[")):
        record(**values)


def test_an_unknown_field_names_its_neighbour() -> None:
    with pytest.raises(SettingsError, match="did you mean guidance_scale"):
        SyncSettings.from_dict({"guidance_skale": 2.0})


@pytest.mark.parametrize("record", [SyncSettings, RuntimeSettings])
def test_the_options_default_to_the_settings(record: type[Settings]) -> None:
    parsed = full_parser().parse_args(["sync", "a.mp4", "b.wav"])
    assert options.settings_from(record, parsed) == record()
