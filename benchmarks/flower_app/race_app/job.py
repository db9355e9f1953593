# SPDX-License-Identifier: Apache-2.0
"""The training job that `benchmarks.racing.job` writes: its arrays determine every choice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import get_model


@dataclass(frozen=True)
class Job:
    """The folder of a job: `job.json`, `initial.npz`, `held-out.npz`, and `ID.npz` for each client."""

    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads((self.folder / "job.json").read_text())
        return settings

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)

    def network(self, weights: dict[str, Tensor]) -> nn.Module:
        """The whole network with `weights`, built without first initializing other weights."""
        settings = self.settings
        with torch.device("meta"):
            network: nn.Module = get_model(
                settings["network"], weights=None, num_classes=settings["num_classes"]
            )
        network.load_state_dict(weights, assign=True)
        return network

    def normalize(self, images: np.ndarray) -> Tensor:
        """uint8 images (B, C, H, W) as the network's float32 input."""
        settings = self.settings
        scale, shift = 1 / (255 * settings["std"]), -settings["mean"] / settings["std"]
        normalized: Tensor = torch.from_numpy(images).float() * scale + shift
        return normalized
