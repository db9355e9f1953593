# SPDX-License-Identifier: Apache-2.0
"""The parts of benchmarks.reconstruction: the attacker's weights, the decoder, and the figures."""

from __future__ import annotations

import pytest
import torch
from benchmarks.attacker_weights import hand_images_on, reduced_rank
from benchmarks.image_decoder import ImageDecoder, psnr, ssim
from torch import Tensor

from splitee.networks.split import build_network
from splitee_device.data.images import open_data

SIZE = 16


def fashion_images(count: int) -> Tensor:
    """Images of clothes, in 0 to 1, (count, 3, SIZE, SIZE)."""
    data = open_data("builtin:fashion-mnist", input_shape=(3, SIZE, SIZE), limit=count)
    return torch.from_numpy(data.train.images).float() / 255


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stem", "cut"), [("resnet18", "small", 6), ("mobilenet_v2", "imagenet", 5)])
@torch.no_grad()
def test_attacker_weights_pass_the_image_on_to_a_deep_cut(name: str, stem: str, cut: int) -> None:
    images = fashion_images(80)
    fitted, tested = images[:60], images[60:]
    network = build_network(name, num_classes=10, input_shape=(3, SIZE, SIZE), stem=stem, seed=1)
    client = network.client(cut).eval()
    honest = psnr(ImageDecoder(client(fitted), fitted, unchanged).decode(client(tested)), tested)
    hand_images_on(network.module, fitted, pooled=False)
    hostile = psnr(ImageDecoder(client(fitted), fitted, unchanged).decode(client(tested)), tested)
    assert hostile > 35 > honest + 5


def unchanged(features: Tensor) -> Tensor:
    return features


def test_attacker_weights_are_refused_for_an_unsupported_network() -> None:
    with pytest.raises(TypeError, match="expected a ResNet or a MobileNetV2, got Linear"):
        hand_images_on(torch.nn.Linear(1, 1), torch.zeros(1, 3, SIZE, SIZE), pooled=False)


def test_reduced_rank_map_spans_the_principal_components() -> None:
    """Inputs that are their own targets: the best map is that onto the principal components."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 6, generator=generator) * torch.tensor([9.0, 7, 5, 0.1, 0.1, 0.1])
    outputs = inputs @ reduced_rank(inputs, inputs, 3).T
    assert outputs.shape == (500, 3)
    assert torch.allclose(torch.corrcoef(outputs.T), torch.eye(3), atol=1e-3)
    centred = inputs - inputs.mean(0)
    estimate = outputs - outputs.mean(0)
    left = centred - estimate @ torch.linalg.lstsq(estimate, centred).solution
    variances = torch.linalg.eigvalsh(centred.T @ centred)
    assert float(left.square().sum()) == pytest.approx(float(variances[:3].sum()), rel=1e-3)


def test_psnr_and_ssim_have_their_known_values() -> None:
    images = fashion_images(4)
    assert ssim(images, images) == pytest.approx(1, abs=1e-5)
    assert psnr(images, images) == 100
    assert psnr(images * 0 + 0.5, images * 0 + 0.6) == pytest.approx(20, abs=1e-3)
    assert ssim(images.flip(0), images) < 0.9
