# SPDX-License-Identifier: Apache-2.0
"""Weights with which a network's features carry its input image, as a hostile server could send them.

Each convolution is set to the linear map from whose outputs the pixels under it can be estimated best
(reduced-rank regression; Izenman, 1975), fitted on the attacker's own images. The normalisations scale each
channel to the range 0.1 to 5.9, so that neither ReLU nor ReLU6 removes anything. Residual branches beside an
identity shortcut are set to zero. To attack features after the average over all places, the last block
outputs copies of channels that are shifted over the zero-padded border. The copies have different averages,
from which each place can be computed.

Other weights may achieve more than these.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import MobileNetV2, ResNet
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock

LOW, HIGH = 0.1, 5.9  # within 0..6, which ReLU6 does not change
ROWS = 12_000  # places that a regression is fitted on, at most
NEAR = (-1, 0, 1)  # shifts that a convolution of 3 x 3 can make, in places


@torch.no_grad()
def hand_images_on(network: nn.Module, images: Tensor, *, pooled: bool) -> None:
    """Set the weights of a resnet18 or a mobilenet_v2 such that its features carry the image.

    Args:
        images: (N, 3, H, W), normalised for the network.
        pooled: optimise the features after the average over all places, not those before it.

    Raises:
        TypeError: the network is of another kind.
    """
    network.eval()
    if isinstance(network, ResNet):
        _resnet(network, images, pooled)
    elif isinstance(network, MobileNetV2):
        _mobilenet(network, images, pooled)
    else:
        raise TypeError(f"expected a ResNet or a MobileNetV2, got {type(network).__name__}")


def _resnet(network: ResNet, images: Tensor, pooled: bool) -> None:
    if isinstance(network.maxpool, nn.MaxPool2d):
        # Max pooling keeps the largest value of a window and, by the negated copy, the smallest.
        patches = _rows(
            images, network.conv1.kernel_size[0], network.conv1.stride[0], network.conv1.padding[0]
        )
        weight = reduced_rank(patches, patches, network.conv1.out_channels // 2)
        _set_weight(network.conv1, torch.cat([weight, -weight]))
    else:
        _gather(network.conv1, images, images)
    _fit_range(network.bn1, network.conv1(images))
    values = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    blocks = [
        block for layer in (network.layer1, network.layer2, network.layer3, network.layer4) for block in layer
    ]
    for index, block in enumerate(blocks):
        last, before_last = index == len(blocks) - 1, index == len(blocks) - 2
        if block.downsample is None:
            if last and pooled:
                _shift_in_block(block, values.shape[-1])
            else:
                _scale(block.bn2, 0.0)
        else:
            places = (values.shape[-1] // 2) ** 2
            most = _room_for_copies(block, places) if before_last and pooled else None
            _downsample(block, values, images, most)
        values = block(values)


def _downsample(block: BasicBlock, values: Tensor, images: Tensor, most: int | None) -> None:
    """Make a block that halves the resolution combine four places into one; its shortcut is set to zero."""
    assert block.downsample is not None
    _scale(block.downsample[1], 0.0)
    _gather(block.conv1, values, images, most)
    _fit_range(block.bn1, block.conv1(values))
    _copy(block.conv2, range(block.conv2.in_channels))
    _scale(block.bn2, 1.0)


def _room_for_copies(block: BasicBlock, places: int) -> int:
    """Number of channels of which the block can hold a copy for each place, and for each shift in NEAR."""
    return int(block.conv2.out_channels) // max(places, len(NEAR) ** 2)


def _shift_in_block(block: BasicBlock, size: int) -> None:
    """Make the last block before the average add copies of its channels, shifted by up to two places."""
    steps = range(-((size - 1) // 2), size // 2 + 1)
    shifts = list(product(steps, steps))
    near = list(product(NEAR, NEAR))
    count = _room_for_copies(block, len(shifts))
    block.conv1.weight.zero_()
    block.conv2.weight.zero_()
    for channel in range(count):
        for index, (down, right) in enumerate(near):
            block.conv1.weight[index * count + channel, channel, 1 - down, 1 - right] = 1
        for index, (down, right) in enumerate(shift for shift in shifts if shift != (0, 0)):
            first = (max(-1, min(1, down)), max(-1, min(1, right)))
            hidden = near.index(first) * count + channel
            target = (index + 1) * count + channel  # the shortcut has the channel itself
            block.conv2.weight[target, hidden, 1 - (down - first[0]), 1 - (right - first[1])] = 1
    _scale(block.bn1, 1.0)
    _scale(block.bn2, 1.0)


def _mobilenet(network: MobileNetV2, images: Tensor, pooled: bool) -> None:
    first, *blocks, last = network.features
    _gather(first[0], images, images)
    _fit_range(first[1], first[0](images))
    values = first(images)
    for index, block in enumerate(blocks):
        if pooled and index == len(blocks) - 1:
            _shift_in_bottleneck(block, values)
        else:
            _bottleneck(block, values, images)
        values = block(values)
    _copy(last[0], range(last[0].in_channels))
    _fit_range(last[1], last[0](values))


def _bottleneck(block: InvertedResidual, values: Tensor, images: Tensor) -> None:
    *inner, project, normalization = block.conv
    if block.use_res_connect:
        _scale(normalization, 0.0)
        return
    depthwise = inner[-1]
    offsets = list(product(range(block.stride), repeat=2))
    if len(inner) == 2:  # copy each channel once for each of the places that are combined
        _copy(inner[0][0], [channel for channel in range(inner[0][0].in_channels) for _ in offsets])
        _fit_range(inner[0][1], inner[0][0](values))
    hidden = inner[0](values) if len(inner) == 2 else values
    depthwise[0].weight.zero_()
    for channel in range(hidden.shape[1]):
        down, right = offsets[channel % len(offsets)]
        depthwise[0].weight[channel, 0, 1 + down, 1 + right] = 1
    _scale(depthwise[1], 1.0)
    for part in inner:
        values = part(values)
    _gather(project, values, images)
    _fit_range(normalization, project(values))


def _shift_in_bottleneck(block: InvertedResidual, values: Tensor) -> None:
    """Make the block before the average output copies of its channels, each shifted by at most one place."""
    expand, depthwise, project, normalization = block.conv
    shifts = list(product(NEAR, NEAR))
    count = project.out_channels // len(shifts)
    _copy(expand[0], [channel for channel in range(count) for _ in shifts])
    _fit_range(expand[1], expand[0](values))
    depthwise[0].weight.zero_()
    for channel in range(count * len(shifts)):
        down, right = shifts[channel % len(shifts)]
        depthwise[0].weight[channel, 0, 1 - down, 1 - right] = 1
    _scale(depthwise[1], 1.0)
    _copy(project, range(count * len(shifts)))
    _scale(normalization, 1.0)


def _gather(conv: nn.Conv2d, values: Tensor, images: Tensor, most: int | None = None) -> None:
    """Set `conv`, whose input is `values`, such that its outputs predict the pixels at each place best.

    Args:
        most: number of output channels to use; None: all.
    """
    stride = conv.stride[0]
    block = images.shape[-1] // (values.shape[-1] // stride)  # side of the pixel block of a place
    weight = reduced_rank(
        _rows(values, stride, stride), _rows(images, block, block), most or conv.out_channels
    )
    _set_weight(conv, weight)


def _rows(values: Tensor, size: int, stride: int, padding: int = 0) -> Tensor:
    """At most ROWS random patches (n, C size size); of the same places if the number of places is equal."""
    rows = F.unfold(values, size, padding=padding, stride=stride).transpose(1, 2).flatten(0, 1)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:ROWS]]


def reduced_rank(inputs: Tensor, targets: Tensor, rank: int) -> Tensor:
    """The map (at most `rank`, d) of inputs (n, d) from which targets (n, q) can best be estimated linearly.

    Its outputs are uncorrelated, in descending order of how much of the targets they explain. Outputs that
    explain nothing are left out.
    """
    inputs, targets = (values.double() - values.double().mean(0) for values in (inputs, targets))
    used = inputs.abs().amax(0) > 0
    inputs, width = inputs[:, used], inputs.shape[1]
    covariance = inputs.T @ inputs
    values, vectors = torch.linalg.eigh(covariance)
    nonzero = values > 1e-9 * values[-1]
    whiten = vectors[:, nonzero] / values[nonzero].sqrt()  # (d, r)
    cross = whiten.T @ (inputs.T @ targets)
    explained, directions = torch.linalg.eigh(cross @ cross.T)
    order = explained.argsort(descending=True)[:rank]
    order = order[explained[order] > 1e-9 * explained[-1]]
    weight = torch.zeros(len(order), width)
    weight[:, used] = (whiten @ directions[:, order]).T.float()
    return weight


def _set_weight(conv: nn.Conv2d, weight: Tensor) -> None:
    """Set `weight` (channels, C k k); if k is less than the kernel's size, from the kernel's middle on."""
    size = round((weight.shape[1] / conv.in_channels) ** 0.5)
    start = 0 if size == conv.kernel_size[0] else conv.kernel_size[0] // 2
    conv.weight.zero_()
    place = slice(start, start + size)
    conv.weight[: len(weight), :, place, place] = weight.reshape(len(weight), conv.in_channels, size, size)


def _copy(conv: nn.Conv2d, channels: range | list[int]) -> None:
    """Make output channel i a copy of input channel `channels[i]`, as far as there are output channels."""
    conv.weight.zero_()
    middle = conv.kernel_size[0] // 2
    for target, channel in enumerate(channels[: conv.out_channels]):
        conv.weight[target, channel, middle, middle] = 1


def _fit_range(normalization: nn.Module, values: Tensor) -> None:
    """Make the normalisation scale each channel of its input `values` to the range LOW to HIGH."""
    low, high = values.amin((0, 2, 3)), values.amax((0, 2, 3))
    varies = high - low > 1e-5
    gain = torch.where(varies, (HIGH - LOW) / (high - low).clamp(min=1e-5), 0)
    _scale(normalization, gain, torch.where(varies, LOW - low * gain, 0))


def _scale(normalization: nn.Module, gain: Tensor | float, bias: Tensor | float = 0.0) -> None:
    """Make a BatchNorm multiply each channel by `gain` and add `bias`."""
    assert isinstance(normalization, nn.BatchNorm2d)
    assert normalization.running_mean is not None
    assert normalization.running_var is not None
    normalization.running_mean.zero_()
    normalization.running_var.fill_(1)
    normalization.weight.copy_(torch.as_tensor(gain) * (1 + normalization.eps) ** 0.5)
    normalization.bias.copy_(torch.as_tensor(bias))
