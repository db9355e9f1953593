# SPDX-License-Identifier: Apache-2.0
"""What each stage of a network saves for its backward pass, and its CPU time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from splitee.networks.frozen import set_training
from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.batches import batch
from splitee_device.data.image_sets import LabelledImages
from splitee_device.profiler.costs import StageFacts

SMALL = 2  # samples in the batch that shows what a stage saves for its backward pass
STAGE_STEPS = 3


def describe_stages(spec: RunSpec) -> Iterator[StageFacts]:
    """All stages, and what each saves for its backward pass, measured on a batch of SMALL samples."""
    network = build_for(spec)
    features = torch.zeros(SMALL, *spec.input_shape)
    kept = [features]
    set_training(network.module, network.frozen_modules)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.module.parameters()}
    seen = {*parameters, features.untyped_storage().data_ptr()}
    for stage in network.stages:
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                sizes.append(storage.nbytes())
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            features = network.stage(stage.index)(features)
        kept.append(features)  # keeps its address from being reused
        yield StageFacts(stage.name, stage.feature_shape, stage.parameters, stage.macs, sum(sizes) // SMALL)


def stage_cpu(
    cut: int, exit_head: nn.Module, images: LabelledImages, spec: RunSpec
) -> Iterator[tuple[float, float]]:
    """CPU seconds of forward and backward of each stage: how a step's time divides among the stages.

    The gradient reaches the boundary between two stages when the backward pass of all later stages is done.
    It does not reach frozen stages.
    """
    network = build_for(spec)
    stages = [network.stage(index) for index in range(1, cut + 1)]
    for stage in stages:
        set_training(stage, network.frozen_modules)
    forwards: list[list[float]] = []
    backwards: list[list[float]] = []
    for _ in range(STAGE_STEPS):
        features, labels = batch(images, np.arange(spec.batch_size), spec.mean, spec.std)
        arrived: dict[int, float] = {}
        ends = [time.process_time()]
        for place, stage in enumerate(stages, start=1):
            features = stage(features)
            if features.requires_grad:  # the features of frozen stages do not
                features.register_hook(partial(_note_arrival, arrived, place))
            ends.append(time.process_time())
        F.cross_entropy(exit_head(features), labels).backward()  # type: ignore[no-untyped-call]
        end = time.process_time()
        arrived = dict.fromkeys(range(cut + 1), end) | arrived | {0: end}
        forwards.append([later - earlier for earlier, later in pairwise(ends)])
        backwards.append([arrived[place - 1] - arrived[place] for place in range(1, len(stages) + 1)])
    for forward, backward in zip(zip(*forwards, strict=True), zip(*backwards, strict=True), strict=True):
        yield median(forward), median(backward)


def _note_arrival(arrived: dict[int, float], place: int, _gradient: Tensor) -> None:
    arrived[place] = time.process_time()
