# SPDX-License-Identifier: Apache-2.0
"""The optimizers of client networks and trunks, and the precision they compute in."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from splitee.protocol.run_spec import RunSpec


def make_optimizer(parameters: Iterable[nn.Parameter], spec: RunSpec) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; parameters that a batch does not reach are left as they are.

    Frozen ones are left out, and have no state.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=spec.learning_rate,
            betas=(spec.momentum, 0.999),
            weight_decay=spec.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.momentum > 0,
    )
