# SPDX-License-Identifier: Apache-2.0
"""The weights that torchvision publishes for its networks; the server downloads them once, devices never."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import torch
from torchvision import models

from splitee.errors import ConfigError
from splitee.networks.zoo import check_classifier, first_line
from splitee_server.learning.initial.weights import SourceWeights

# Their torchvision classes convert images from ImageNet's mean and deviation to these; networks here do not.
OWN_PREPARATION = ("googlenet", "inception_v3")


def read_published(network: str) -> SourceWeights:
    """The default weights of a torchvision classifier, out of torch's cache or downloaded into it.

    Raises:
        ConfigError: there are none for this network, or they are not in the cache and cannot be downloaded.
        NetworkError: there is no such network.
    """
    if ":" in network:
        raise ConfigError(f"--weights torchvision: {network} is none of torchvision's networks; give a file")
    check_classifier(network)
    weights = models.get_model_weights(network).DEFAULT
    folder = Path(torch.hub.get_dir(), "checkpoints")
    name = Path(urlparse(weights.url).path).name
    try:
        tensors = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except Exception as error:  # without internet URLError; with a damaged file, torch raises anything
        raise ConfigError(
            f"--weights torchvision: {folder / name} cannot be read, and {weights.url} not downloaded "
            f"({first_line(error)}): put that file there, or give one"
        ) from None
    if network in OWN_PREPARATION:
        return SourceWeights(name, tensors, mean=(0.5,), std=(0.5,))
    preparation = weights.transforms()
    return SourceWeights(name, tensors, mean=tuple(preparation.mean), std=tuple(preparation.std))
