"""The training loop: one place for steps, averaged weights, checkpoints that resume exactly, and the log.

What a step draws depends on the seed and the step's number only, so a run that was killed and resumed ends with the
same weights as one that was not (same machine, same number of threads).
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "log.jsonl"
FAST_GAIN = 3.0


@dataclass(frozen=True)
class LoopSettings:
    """Settings of a run. `steps` counts from the run's beginning, so raising it lengthens a finished run."""

    steps: int
    learning_rate: float = 5e-4
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
    """One training run in a folder: the module in training, its averaged copy, the optimizer and the log.

    module: holds everything that is trained. `average` is an exponential moving average of it, which is what a
    bundle is made of. fast: parts of the names of parameters that learn FAST_GAIN times as fast as the rest. beside:
    what changes with the run without being trained by it, kept in the checkpoint too.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        settings: LoopSettings,
        device: torch.device,
        fast: Sequence[str] = (),
        beside: nn.Module | None = None,
    ) -> None:
        self.folder, self.settings, self.device = folder, settings, device
        self.module = module.to(device)
        self.average = copy.deepcopy(self.module).requires_grad_(False).eval()
        trained = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        groups: list[list[nn.Parameter]] = [[], []]
        for name, parameter in trained:
            groups[any(part in name for part in fast)].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "gain": gain} for group, gain in zip(groups, (1.0, FAST_GAIN), strict=True) if group],
            settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
        )
        self.step = 0
        self.beside = beside
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT_NAME).exists():
            self._load()

    def train(self, loss: Loss, report: Report | None = None, after_save: Callable[[int], None] | None = None) -> None:
        """Run to `settings.steps`. `loss(step, generator)` gives named losses, of which "loss" is minimised.

        `report(step, steps, losses)` is called at every logged step, `after_save(step)` after every checkpoint.
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
        for group in self.optimizer.param_groups:
            group["lr"] = group["gain"] * self.settings.learning_rate * schedule(self.step, self.settings)
        self.module.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.autocast):
            losses = loss(self.step, step_generator(self.settings.seed, self.step))
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return losses

    @torch.no_grad()
    def _update_average(self) -> None:
        # The decay grows with the step, so that the random start is soon forgotten.
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        own = dict(self.module.named_parameters())
        for name, value in self.average.named_parameters():
            value.lerp_(own[name], 1 - decay)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "step": self.step,
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.beside is not None:
            state["beside"] = self.beside.state_dict()
        temporary = self.folder / (CHECKPOINT_NAME + ".tmp")
        torch.save(state, temporary)
        temporary.replace(self.folder / CHECKPOINT_NAME)

    def _load(self) -> None:
        state = torch.load(self.folder / CHECKPOINT_NAME, map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.beside is not None and "beside" in state:
            self.beside.load_state_dict(state["beside"])
        self.step = int(state["step"])
        _drop_lines_after(self.folder / LOG_NAME, self.step)
        logger.info("resumed %s at step %d", self.folder, self.step)

    def _log(self, values: dict[str, float]) -> None:
        line: dict[str, Any] = {"step": self.step, "time_s": round(time.time(), 1)}
        line |= {name: round(value, 6) for name, value in values.items()}
        with (self.folder / LOG_NAME).open("a") as file:
            file.write(json.dumps(line) + "\n")


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of all that step `step` draws; lives on the CPU whatever the device."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def schedule(step: int, settings: LoopSettings) -> float:
    """Factor of the learning rate: linear warm-up, constant, cosine to 2 % over the last `decay_steps`."""
    warm = min((step + 1) / max(settings.warmup_steps, 1), 1.0)
    left = (settings.steps - step) / max(settings.decay_steps, 1)
    cool = 1.0 if left >= 1 else 0.02 + 0.98 * 0.5 * (1 - math.cos(math.pi * left))
    return warm * cool


def load_average(folder: Path, module: nn.Module) -> int:
    """Load the averaged weights of a run's checkpoint into `module`; returns the step they are from.

    Raises FileNotFoundError when the folder holds no checkpoint.
    """
    state = torch.load(folder / CHECKPOINT_NAME, map_location="cpu", weights_only=True)
    module.load_state_dict(state["average"])
    return int(state["step"])


def read_log(folder: Path) -> list[dict[str, float]]:
    """The run's logged lines, oldest first."""
    path = folder / LOG_NAME
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _drop_lines_after(path: Path, step: int) -> None:
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))
