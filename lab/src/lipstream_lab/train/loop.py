"""Training loop with averaged weights, checkpoints that resume exactly, and a log.

The random numbers of a step depend on the seed and the step alone, so an interrupted and resumed run ends with the same
weights as an uninterrupted one (on the same machine with the same number of threads).
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lipstream.runtime.device import computes_bf16
from lipstream_lab.train.muon import Muon, is_hidden_matrix

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "log.jsonl"
FAST_GAIN = 3.0


@dataclass(frozen=True)
class LoopSettings:
    """Settings of a run.

    steps: the total; raise it to continue a finished run. optimizer: "muon" trains the matrices within the network,
    AdamW the rest. autocast: compute in bf16 where that saves time.
    """

    steps: int
    learning_rate: float = 5e-4
    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup_steps: int = 50
    decay_steps: int = 600
    ema_decay: float = 0.995
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    save_every_s: float = 120.0
    log_every: int = 10
    seed: int = 0
    autocast: bool = True


Loss = Callable[[int, torch.Generator], dict[str, Tensor]]
Report = Callable[[int, int, dict[str, float]], None]


class Run:
    """A training run in a folder: module, averaged weights, optimizer and log.

    module: contains all trained parameters. `average` is its exponential moving average, from which models are made.
    fast: substrings of the names of AdamW's parameters with FAST_GAIN times the learning rate. auxiliary: a module that
    changes during the run without being trained by these optimizers, saved in the checkpoint as well.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        settings: LoopSettings,
        device: torch.device,
        fast: Sequence[str] = (),
        auxiliary: nn.Module | None = None,
    ) -> None:
        self.folder, self.settings, self.device = folder, settings, device
        self.module = module.to(device)
        self.average = copy.deepcopy(self.module).requires_grad_(False).eval()
        self.optimizers = _optimizers(self.module, settings, fast)
        self.step = 0
        self.auxiliary = auxiliary
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT_NAME).exists():
            self._load()

    def train(self, loss: Loss, report: Report | None = None, after_save: Callable[[int], None] | None = None) -> None:
        """Train up to `settings.steps`, minimising the entry "loss" of `loss(step, generator)`.

        report(step, steps, losses): called at every logged step. after_save(step): called after every checkpoint.
        """
        last_save = time.monotonic()
        while self.step < self.settings.steps:
            losses = self._one_step(loss)
            if self.step % self.settings.log_every == 0 or self.step == self.settings.steps:
                values = {name: float(value.detach()) for name, value in losses.items()}
                self._log(values)
                if report is not None:
                    report(self.step, self.settings.steps, values)
            if time.monotonic() - last_save > self.settings.save_every_s or self.step == self.settings.steps:
                self.save()
                if after_save is not None:
                    after_save(self.step)
                last_save = time.monotonic()

    def _one_step(self, loss: Loss) -> dict[str, Tensor]:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["gain"] * self.settings.learning_rate * schedule(self.step, self.settings)
        self.module.train()
        autocast = self.settings.autocast and computes_bf16(self.device)
        # torch's fused attention takes longer than the plain one on a CPU, backwards and on few tokens.
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast), attention:
            losses = loss(self.step, step_generator(self.settings.seed, self.step))
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self._update_average()
        return losses

    @torch.no_grad()
    def _update_average(self) -> None:
        # The decay grows with the step, so that the random initialisation is soon forgotten.
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        trained = dict(self.module.named_parameters())
        for name, value in self.average.named_parameters():
            value.lerp_(trained[name], 1 - decay)

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "step": self.step,
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        if self.auxiliary is not None:
            state["auxiliary"] = self.auxiliary.state_dict()
        temporary = self.folder / (CHECKPOINT_NAME + ".tmp")
        torch.save(state, temporary)
        temporary.replace(self.folder / CHECKPOINT_NAME)

    def _load(self) -> None:
        state = torch.load(self.folder / CHECKPOINT_NAME, map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.auxiliary is not None and "auxiliary" in state:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.step = int(state["step"])
        _drop_lines_after(self.folder / LOG_NAME, self.step)
        logger.info("resumed %s at step %d", self.folder, self.step)

    def _log(self, values: dict[str, float]) -> None:
        line: dict[str, Any] = {"step": self.step, "time_s": round(time.time(), 1)}
        line |= {name: round(value, 6) for name, value in values.items()}
        with (self.folder / LOG_NAME).open("a") as file:
            file.write(json.dumps(line) + "\n")


def _optimizers(module: nn.Module, settings: LoopSettings, fast: Sequence[str]) -> list[torch.optim.Optimizer]:
    """Share out the module's trained parameters."""
    matrices: list[nn.Parameter] = []
    groups: list[list[nn.Parameter]] = [[], []]
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if settings.optimizer == "muon" and is_hidden_matrix(name, parameter):
            matrices.append(parameter)
        else:
            groups[any(part in name for part in fast)].append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": group, "gain": gain} for group, gain in zip(groups, (1.0, FAST_GAIN), strict=True) if group],
            settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
        )
    ]
    if matrices:
        optimizers.append(Muon([{"params": matrices, "gain": 1.0}], settings.learning_rate))
    return optimizers


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the random generator of a step, on the CPU whatever the device."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def schedule(step: int, settings: LoopSettings) -> float:
    """Return the learning rate factor: linear warm-up, constant, cosine to 2 % over the last `decay_steps`."""
    warm = min((step + 1) / max(settings.warmup_steps, 1), 1.0)
    left = (settings.steps - step) / max(settings.decay_steps, 1)
    cool = 1.0 if left >= 1 else 0.02 + 0.98 * 0.5 * (1 - math.cos(math.pi * left))
    return warm * cool


def load_average(folder: Path, module: nn.Module) -> int:
    """Load the averaged weights of a run's checkpoint into `module`; return their step.

    Raises FileNotFoundError if the folder has no checkpoint.
    """
    state = torch.load(folder / CHECKPOINT_NAME, map_location="cpu", weights_only=True)
    module.load_state_dict(state["average"])
    return int(state["step"])


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the logged lines of a run, oldest first."""
    path = folder / LOG_NAME
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _drop_lines_after(path: Path, step: int) -> None:
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))
