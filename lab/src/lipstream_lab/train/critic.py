"""A critic of mouths, which learns beside the networks that draw them to tell their pictures from true ones.

What several mouths could be, regression draws as their mean: lips as a band, teeth as a strip. A critic of patches (as
in Isola et al. 2017, https://arxiv.org/abs/1611.07004, with the hinge loss of Lim and Ye 2017,
https://arxiv.org/abs/1705.02894) asks for one of them instead; matching its features of the true picture (Larsen et al.
2016, https://arxiv.org/abs/1512.09300) asks for the true one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lipstream_lab.train import losses

# The mouth with chin and cheeks beside it in an aligned crop: rows and columns, as shares of its side.
_ROWS, _COLUMNS = (0.4, 0.8), (0.25, 0.75)
_WIDTHS = (32, 64, 96, 96)


@dataclass(frozen=True)
class CriticSettings:
    """Weights of the losses of a picture. critic_steps: that the critic learns alone at first, without a say in it."""

    texture_weight: float
    critic_weight: float
    features_weight: float
    critic_steps: int = 100


class Critic(nn.Module):
    """Maps pictures (n, 3, res, res) to the features of their mouths and, last, to verdicts on patches (n, 1, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, _WIDTHS[0], 3, 1, 1))]
        for before, width in pairwise(_WIDTHS):
            layers.append(nn.Sequential(nn.Conv2d(before, width, 4, 2, 1), nn.GroupNorm(8, width)))
        self.layers = nn.ModuleList(layers)
        self.verdict = nn.Conv2d(_WIDTHS[-1], 1, 3, 1, 1)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        side = pictures.shape[-1]
        rows, columns = (slice(round(a * side), round(b * side)) for a, b in (_ROWS, _COLUMNS))
        x, found = pictures[..., rows, columns], []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            found.append(x)
        return [*found, self.verdict(x).float()]


class WithCritic(nn.Module):
    """An autoencoder and the critic of its pictures: one module, so that a run resumes with both."""

    def __init__(self, vae: Any, critic: Critic | None = None) -> None:
        """critic: one that was trained before, to go on with."""
        super().__init__()
        self.vae, self.critic = vae, critic or Critic()

    def losses(
        self, made: Tensor, true: Tensor, weight: Tensor, settings: CriticSettings, step: int
    ) -> dict[str, Tensor]:
        """Return their sum "loss" and its parts: texture and critic, after `critic_steps` also verdict and features.

        made, true: (n, 3, res, res). weight: of the texture's pixels, broadcasts over them.
        """
        parts = {"texture": losses.texture_loss(made, true, weight), "critic": self.critic_loss(made, true)}
        total = settings.texture_weight * parts["texture"] + parts["critic"]
        if step >= settings.critic_steps:
            parts["verdict"], parts["features"] = self.picture_losses(made, true)
            total = total + settings.critic_weight * parts["verdict"] + settings.features_weight * parts["features"]
        return {"loss": total, **parts}

    def critic_loss(self, made: Tensor, true: Tensor) -> Tensor:
        """Return the critic's hinge loss, which does not reach the picture. made, true: (n, 3, res, res)."""
        verdicts = self.critic(torch.cat((made.detach(), true)))[-1]
        on_made, on_true = verdicts.chunk(2)
        return F.relu(1 + on_made).mean() + F.relu(1 - on_true).mean()

    def picture_losses(self, made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a critic that stays as it is asks of the picture: its verdict, and the distance of features."""
        frozen = {name: value.detach() for name, value in self.critic.named_parameters()}
        *of_made, verdict = functional_call(self.critic, frozen, (made,))
        with torch.no_grad():
            of_true = functional_call(self.critic, frozen, (true,))
        distances = [
            (a - b).abs().mean() / b.abs().mean().clamp_min(1e-3) for a, b in zip(of_made, of_true, strict=False)
        ]
        return -verdict.mean(), torch.stack(distances).mean()
