# SPDX-License-Identifier: Apache-2.0
"""The optimizers of client networks and trunks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from splitee.protocol.run_spec import RunSpec


def make_optimizer(parameters: Iterable[nn.Parameter], spec: RunSpec) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; parameters that a batch does not reach are left as they are.

    Frozen parameters are left out, and have no state. With `fused`, a step passes over each weight once; the
    last bits differ from those without it.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    fused = True if spec.fused else None  # None: as torch chooses, which is the same on every CPU
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=spec.learning_rate,
            betas=(spec.momentum, 0.999),
            weight_decay=spec.weight_decay,
            fused=fused,
        )
    optimizer = torch.optim.SGD(
        parameters,
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.momentum > 0,
        fused=fused,
    )
    if spec.fused and spec.momentum:
        optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


def forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Like `zero_grad`, which also records itself for torch's profiler and so takes ten times as long."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _begin_momentum(optimizer: torch.optim.Optimizer, _arguments: Any, _keywords: Any) -> None:
    """Give weights that are trained for the first time the momentum zero.

    The fused step treats all weights as having momentum, or none. In a trunk that devices enter at several
    cuts, the deeper stages may have been trained before the others, and a moved stage's momentum is dropped.
    """
    if len(optimizer.state) == sum(len(group["params"]) for group in optimizer.param_groups):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
