"""Sampling, what is computed once a call, and where the work goes."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor
from torch._inductor.exc import TritonMissing

from helpers.unet import SMALL, Inputs, make_inputs, make_unet
from lipstream.cli import main
from lipstream.diffusion import batching, conditioning
from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.sampling import UNetDenoiser, initial_noise, sample
from lipstream.errors import SettingsError
from lipstream.models.load import read_config
from lipstream.models.unet import Prepared, UNet
from lipstream.presets import Sampling
from lipstream.runtime.compile import RecordedStep, compiled_step
from lipstream.runtime.device_stream import DeviceStream
from lipstream.settings import RuntimeSettings

SCHEDULER_WORDS = read_config("latentsync-1.5")[0].scheduler
ONE_LEVEL = replace(
    SMALL,
    block_out_channels=(32,),
    down_block_types=("CrossAttnDownBlock3D",),
    up_block_types=("CrossAttnUpBlock3D",),
    layers_per_block=1,
)
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def unet() -> UNet:
    unet = make_unet()
    unet.fuse_projections()
    return unet


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def sample_as_published(unet: UNet, inputs: Inputs, noise: Tensor, steps: int, guidance_scale: float) -> Tensor:
    """Every step computes everything, and both branches of guidance as one batching."""
    scheduler: Any = DDIMScheduler.from_config(dict(SCHEDULER_WORDS))
    scheduler.set_timesteps(steps)
    latents = noise.expand(len(inputs.audio), -1, -1, -1)
    for timestep in scheduler.timesteps:
        given = torch.cat((latents, inputs.channels), 1)
        if guidance_scale > 1.0:
            audio = torch.cat((torch.zeros_like(inputs.audio), inputs.audio))
            zero, conditional = unet(torch.cat((given, given)), timestep, audio, inputs.num_frames).chunk(2)
            predicted = zero + guidance_scale * (conditional - zero)
        else:
            predicted = unet(given, timestep, inputs.audio, inputs.num_frames)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5, 4.0])
@pytest.mark.parametrize(("windows", "num_frames"), [(1, 16), (2, 7), (1, 1)])
def test_sampling_gives_what_the_plain_way_gives(
    unet: UNet, windows: int, num_frames: int, guidance_scale: float
) -> None:
    inputs = make_inputs(windows, num_frames)
    noise = initial_noise(4, 8, 8, seed=3)
    latents = sample(
        UNetDenoiser(unet),
        SCHEDULER_WORDS,
        noise,
        Conditioning(inputs.channels, inputs.audio, num_frames),
        Sampling(3, guidance_scale),
    )
    expected = sample_as_published(unet, inputs, noise, 3, guidance_scale)
    assert float((latents - expected).abs().max()) <= 1e-4


def test_half_precision_steps_stay_half_inside_and_full_between() -> None:
    unet = make_unet().to(torch.bfloat16)
    inputs = make_inputs(1, 4)
    denoiser = UNetDenoiser(unet)
    prepared = denoiser.prepare(Conditioning(inputs.channels, inputs.audio, 4))
    assert prepared.conv_in_features.dtype == torch.bfloat16
    assert denoiser(inputs.latents, torch.tensor(1), prepared, True)[0].dtype == torch.float32


def assert_near(ours: Tensor, expected: Tensor) -> None:
    assert float((ours - expected).abs().max()) <= 1e-4


def small_vae() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ).eval()


def test_images_pass_the_vae_in_parts() -> None:
    vae = small_vae()
    sizes: list[int] = []
    for module in (vae.encoder, vae.decoder):
        module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    pixels = torch.rand(37, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = conditioning.encode(vae, pixels)
    decoded = conditioning.decode(vae, latents)
    assert (len(latents), len(decoded)) == (37, 37)
    assert max(sizes) <= 16
    assert sum(sizes) == 2 * 37
    for i in (0, 16, 36):
        assert torch.allclose(conditioning.encode(vae, pixels[i : i + 1])[0], latents[i], atol=1e-5)
        assert torch.allclose(conditioning.decode(vae, latents[i : i + 1])[0], decoded[i], atol=1e-5)


def test_a_cpu_is_given_as_many_images_as_its_caches_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, sizes = small_vae(), list[int]()
    vae.encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    monkeypatch.setattr(conditioning, "_CACHED_BYTES", 3 * (8 * 16 * 16 * 4))  # three images of 16 x 16
    for height, width in ((16, 16), (16, 24), (32, 32)):
        conditioning.encode(vae, torch.zeros(4, 3, height, width))
    assert sizes == [3, 1, 2, 2, 1, 1, 1, 1]


def test_a_gpu_takes_the_pixels_of_one_large_image_in_a_call() -> None:
    vae, sizes = small_vae().to("meta"), list[int]()
    vae.encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for resolution, expected in ((256, [4, 4, 1]), (512, [1] * 9), (768, [1] * 9)):
        sizes.clear()
        conditioning.encode(vae, torch.empty(9, 3, resolution, resolution, device="meta"))
        assert sizes == expected


def test_windows_that_fit() -> None:
    gb = 10**9
    assert batching.windows_that_fit(1 * gb, 3 * gb) == 1
    assert batching.windows_that_fit(16 * gb, 4 * gb) == 2
    assert batching.windows_that_fit(16 * gb, 4 * gb, beside_bytes=2 * gb) == 1
    assert batching.windows_that_fit(1 * gb, 1 * gb, beside_bytes=20 * gb) == 1
    assert batching.windows_that_fit(1000 * gb, 1 * gb) == batching.MOST_WINDOWS


def test_a_cpu_takes_one_window_a_call() -> None:
    assert batching.windows_per_call("auto", None, CPU) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "calls"),
    [({"threads": 1}, 1), ({"threads": 3}, 3), ({"threads": 64}, 4), ({"threads": 3, "compile": True}, None)],
)
def test_small_networks_are_called_side_by_side_on_a_cpu(unet: UNet, words: Any, calls: int | None) -> None:
    assert batching.calls_side_by_side(unet.config, RuntimeSettings(device="cpu", **words)) == calls


def test_large_networks_take_all_cores(unet: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = sum(tensor.numel() for tensor in unet.state_dict().values())
    monkeypatch.setattr(batching, "_SMALL", numbers)
    for cores, calls in ((2, 3), (4, 3), (8, None)):
        monkeypatch.setattr(batching, "cores", lambda cores=cores: cores)
        assert batching.calls_side_by_side(unet.config, RuntimeSettings(device="cpu", threads=3)) == calls
    monkeypatch.setattr(batching, "_MEDIUM", numbers)
    monkeypatch.setattr(batching, "cores", lambda: 2)
    assert batching.calls_side_by_side(unet.config, RuntimeSettings(device="cpu", threads=3)) is None


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch.compile as far as tracing, which takes a second and not minutes; notes each graph."""
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return graphs


def test_a_compiled_step_is_the_step(traced: list[int]) -> None:
    unet = make_unet(ONE_LEVEL)
    inputs, short = make_inputs(2, 4), make_inputs(1, 3)
    step = compiled_step(unet, frames=8)
    prepared = unet.prepare(inputs.channels, inputs.audio, 4)
    outputs: list[Tensor] = []

    def run() -> None:
        with torch.inference_mode():
            outputs.append(step(inputs.latents, torch.tensor(401), prepared, True, None)[0])

    for _ in range(2):  # a run denoises in a thread of its own
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    expected = unet.step(inputs.latents, torch.tensor(401), prepared, True)[0]
    for output in outputs:
        assert_near(output, expected)
    assert len(outputs) == 2
    assert len(traced) == 1, "one whole graph, made once"

    prepared = unet.prepare(short.channels, short.audio, 3)
    step(short.latents, torch.tensor(401), prepared, True, None)
    assert len(traced) == 1, "windows of another size are not compiled"

    prepared = unet.prepare(inputs.channels, inputs.audio, 4)
    expected, deep = unet.step(inputs.latents, torch.tensor(401), prepared, True)
    assert_near(step(inputs.latents, torch.tensor(401), prepared, True, deep)[0], expected)
    assert len(traced) == 2, "deep features given: a graph of its own"


def test_a_machine_that_cannot_compile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make_unet(ONE_LEVEL)

    def backend(graph: Any, inputs: Any) -> Any:
        raise FileNotFoundError("no compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    inputs = make_inputs(1, 2)
    step = compiled_step(unet, frames=2)
    with pytest.raises(SettingsError, match=r"no compiler.*leave --compile out"):
        step(inputs.latents, torch.tensor(1), unet.prepare(inputs.channels, inputs.audio, 2), False, None)


def test_a_third_resolution_compiles_and_past_the_limit_the_plain_step_is_taken(
    traced: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unet = make_unet(ONE_LEVEL)
    torch._dynamo.reset()
    step = compiled_step(unet, frames=2)

    def run(size: int) -> None:
        inputs = make_inputs(1, 2, ONE_LEVEL, size=size)
        prepared = unet.prepare(inputs.channels, inputs.audio, 2)
        for guided in (False, True):
            given = (inputs.latents, torch.tensor(401), prepared, guided)
            assert_near(step(*given, None)[0], unet.step(*given)[0])

    with torch._dynamo.config.patch(recompile_limit=1):  # torch's own, which is raised for the step
        for size in (4, 6, 8, 4):
            run(size)
    assert len(traced) == 6
    assert not [record for record in caplog.records if record.name.startswith("lipstream")]
    monkeypatch.setattr("lipstream.runtime.compile._MAX_GRAPHS", 6)
    run(10)
    run(12)
    assert len(traced) == 6
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("lipstream")]
    assert warnings == ["torch.compile has reached its limit of graphs; the U-Net goes on uncompiled"]


class FakeGraph:
    """Stands in for a CUDA graph: `replay` computes `predicted` from `inputs`, slowly."""

    def __init__(self, inputs: list[Tensor], predicted: Tensor) -> None:
        self.inputs, self.predicted = inputs, predicted

    def replay(self) -> None:
        self.predicted.copy_(self.inputs[0])
        time.sleep(0.002)
        self.predicted.add_(self.inputs[2].mean())


def test_callers_of_a_recording_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Stream", "Event", "graph_pool_handle", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    step = RecordedStep(MagicMock(), CPU)

    def record(latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None) -> Any:
        inputs, predicted = [latents, timestep, prepared.conv_in_features], torch.empty_like(latents)
        return MagicMock(graph=FakeGraph(inputs, predicted), inputs=inputs, predicted=predicted, deep=predicted)

    monkeypatch.setattr(step, "_record", record)

    def call(number: float) -> bool:
        latents = torch.full((1, 4, 2, 2), number)
        prepared = Prepared(torch.full((1, 4, 2, 2), 2 * number), (), 1)
        results = [step(latents, torch.tensor(1), prepared, False)[0] for _ in range(10)]
        return all(torch.equal(result, 3 * latents) for result in results)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, map(float, range(4)))) == [True] * 4


def test_a_machine_without_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **words: Any) -> Any:
        def step(*args: Any) -> Any:
            raise TritonMissing(first_useful_frame=None)

        return step

    monkeypatch.setattr(torch, "compile", missing)
    unet, inputs = make_unet(ONE_LEVEL), make_inputs(1, 2)
    step = compiled_step(unet, frames=2)
    with pytest.raises(SettingsError, match=r"Triton.*leave --compile out"):
        step(inputs.latents, torch.tensor(1), unet.prepare(inputs.channels, inputs.audio, 2), False, None)


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=[needs_cuda, pytest.mark.gpu])])
def test_a_device_stream_uploads_and_downloads(device: torch.device) -> None:
    stream = DeviceStream(device)
    given = torch.arange(6).view(2, 3)
    with stream.running():
        there = stream.upload(given)
        back = stream.download(there * 2)
    assert there.device.type == device.type
    assert back.device == CPU
    assert torch.equal(back, given * 2)


def test_device_streams_on_metal_take_turns() -> None:
    first, second = (DeviceStream(torch.device("mps")) for _ in range(2))
    entered = threading.Event()

    def enter() -> None:
        with second.running():
            entered.set()

    thread = threading.Thread(target=enter)
    with first.running():
        thread.start()
        assert not entered.wait(0.2)
    thread.join(timeout=30)
    assert entered.is_set()


@needs_cuda
@pytest.mark.gpu
def test_a_recorded_step_is_the_step() -> None:
    unet = make_unet().to("cuda")
    recorded = RecordedStep(unet.step, torch.device("cuda"))
    for seed in (1, 2, 3):
        inputs = make_inputs(2, 4, SMALL, seed=seed)
        prepared = unet.prepare(inputs.channels.cuda(), inputs.audio.cuda(), 4)
        latents, timestep = inputs.latents.cuda(), torch.tensor(100 * seed).cuda()
        for guided in (True, False):
            expected = unet.step(latents, timestep, prepared, guided)
            deep = None
            for _ in range(2):  # deep features computed, then given
                predicted, deep = recorded(latents, timestep, prepared, guided, deep)
                assert_near(predicted, expected[0])
                assert_near(deep, expected[1])


def test_words_for_the_batch() -> None:
    assert RuntimeSettings(batch="auto").batch == "auto"
    with pytest.raises(SettingsError, match="batch"):
        RuntimeSettings(batch=0)
    assert main(["sync", "a.mp4", "b.wav", "--batch", "many"]) == 2
