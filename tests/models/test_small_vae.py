"""TAESD in place of the model's autoencoder: what it computes, in a whole run, and where it does not belong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from helpers.models import make_model_folder
from helpers.pipeline import FAST, KnownFace, read_images, write_clip, write_speech
from lipstream import LipSync, ModelError, RuntimeSettings, SettingsError
from lipstream.bundled import sample
from lipstream.diffusion import conditioning
from lipstream.media.reader import read_frames
from lipstream.models import network_files, small_vae
from lipstream.models.load import Model, load_model
from lipstream.settings import VaeName

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def taesd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoencoderTiny]:
    """A stand-in with random weights, found where the published file would be."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoencoderTiny().eval()  # type: ignore[no-untyped-call]
    path = tmp_path_factory.mktemp("taesd") / "diffusion_pytorch_model.safetensors"
    save_file(network.state_dict(), path)
    patch = pytest.MonkeyPatch()
    patch.setattr(small_vae, "locate_network_file", lambda name: path)
    yield network
    patch.undo()


@pytest.fixture(scope="module")
def folder(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(goldens, tmp_path_factory.mktemp("models") / "small")


def load(folder: Path, vae: VaeName) -> Model:
    return load_model(folder, CPU, torch.float32, vae=vae)


@pytest.mark.parametrize("name", ["taesd", "taesd-decoder"])
def test_latents_decode_as_diffusers_decodes_them(taesd: AutoencoderTiny, folder: Path, name: VaeName) -> None:
    model = load(folder, name)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = taesd.decode(latents).sample
        found = conditioning.decode(model.vae, latents)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_each_way_encodes_with_what_it_names(taesd: AutoencoderTiny, folder: Path) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    own, both, decoder = (load(folder, name) for name in ("own", "taesd", "taesd-decoder"))
    with torch.inference_mode():
        found = {
            name: conditioning.encode(model.vae, pixels)
            for name, model in zip("obd", (own, both, decoder), strict=True)
        }
        expected = taesd.encode(pixels).latents
    torch.testing.assert_close(found["b"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["d"], found["o"])
    assert both.latent_size(64) == decoder.latent_size(64) == own.latent_size(64) == 8


def test_a_run_with_it_differs_from_one_without(taesd: AutoencoderTiny, folder: Path, tmp_path: Path) -> None:
    frames = [frame.image for frame in itertools.islice(read_frames(sample.VIDEO), 3)]
    video, speech = write_clip(tmp_path / "in.mp4", frames), write_speech(tmp_path / "in.wav", 3 / 25)
    landmarks = torch.tensor([[190.0, 150.0], [320.0, 150.0], [255.0, 250.0]]).double().numpy()
    pictures, used = {}, {}
    for name in ("own", "taesd"):
        runtime = RuntimeSettings(device="cpu", vae=name)  # type: ignore[arg-type]
        with LipSync(load(folder, runtime.vae), KnownFace(landmarks), runtime) as sync:
            used[name] = sync(video, speech, tmp_path / f"{name}.mp4", FAST).settings["vae"]
        pictures[name] = read_images(tmp_path / f"{name}.mp4")
    assert used == {"own": "own", "taesd": "taesd"}
    assert all((one != other).any() for one, other in zip(pictures["own"], pictures["taesd"], strict=True))


def test_it_is_refused_for_other_latents_and_other_engines(taesd: AutoencoderTiny) -> None:
    with pytest.raises(ModelError, match="latents"):
        load_model("tiny", CPU, torch.float32, vae="taesd")
    with pytest.raises(SettingsError, match="--vae"):
        RuntimeSettings(engine="onnxruntime", vae="taesd")


def test_an_absent_file_names_the_command_that_fetches_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_vae, "locate_network_file", network_files.locate_network_file)
    monkeypatch.setattr("lipstream.models.hub.cached", lambda file: None)
    with pytest.raises(ModelError, match="lipstream models download taesd"):
        load(folder, "taesd")
