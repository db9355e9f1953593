# SPDX-License-Identifier: Apache-2.0
"""Features of a client network whose stages are all frozen: those of an image never change, to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from splitee.protocol.run_spec import RunSpec
from splitee.samples.fitting import Pixels
from splitee.samples.images import normalize
from splitee.training.state import weights_digest
from splitee_device.data.batches import Batch
from splitee_device.data.image_sets import LabelledImages, Numbers
from splitee_device.training.feature_cache import CacheRoom, FeatureCache, discard, key_of

GROUP = 32  # images computed together; always this number, because another could change the last bits
CHANNELS_LAST = torch.channels_last  # a layout in which convolutions need half to four fifths of the time


class FrozenFeatures:
    """Computes the features of images, or takes them from the cache if they were computed before.

    The bits are the same with a cache, without one, and with a full one.
    """

    def __init__(self, client: nn.Module, shape: tuple[int, ...], spec: RunSpec) -> None:
        """`shape`: of an image's features."""
        self._client = client
        self._shape = shape
        self._spec = spec
        self._room: CacheRoom | None = None
        self._cache: FeatureCache | None = None
        self._owner = ""  # of the cache: what the network and its input are
        self._keys: dict[tuple[int, int], bytes] = {}  # of images that this process has seen

    def cache_in(self, room: CacheRoom | None) -> None:
        """Keep features in `room`; None: keep none. Those in a room of no bytes are deleted."""
        self._room = room if room is not None and room.most else None
        if room is not None and not room.most:
            discard(room.folder)

    def forget(self) -> None:
        """Call this when the network may have got other weights."""
        self._owner = ""

    def batches(self, image_set: LabelledImages, order: Iterable[Numbers]) -> Iterator[Batch]:
        """The batches of `order`, with features (B, *shape) in evaluation mode instead of images."""
        return (self._batch(image_set, numbers) for numbers in order)

    @torch.no_grad()
    def _batch(self, image_set: LabelledImages, numbers: Numbers) -> Batch:
        self._open()
        found = {int(number): self._kept(image_set, int(number)) for number in numbers}
        if any(features is None for features in found.values()):
            numbers, pixels = image_set.read(numbers)
            found = self._computed(image_set, dict(zip(map(int, numbers), pixels, strict=True)))
        rows = [features for number in numbers if (features := found[int(number)]) is not None]
        labels = torch.from_numpy(image_set.labels[numbers])
        place = next(self._client.parameters()).device
        return Batch(numbers, torch.stack(rows).to(place), labels.to(place))

    def _computed(self, image_set: LabelledImages, images: dict[int, Pixels]) -> dict[int, Tensor | None]:
        """The features of images (C, H, W) by their numbers: from the cache, or else computed."""
        if self._cache is not None:
            for number, pixels in images.items():
                self._keys.setdefault((id(image_set), number), key_of(pixels))
        found = {number: self._kept(image_set, number) for number in images}
        missing = [number for number, features in found.items() if features is None]
        place = next(self._client.parameters()).device
        self._client.eval()
        for start in range(0, len(missing), GROUP):
            group = missing[start : start + GROUP]
            # A short group is filled up with copies of its own images.
            pixels = np.stack([images[number] for number in np.resize(group, GROUP)])
            inputs = torch.from_numpy(normalize(pixels, self._spec.mean, self._spec.std)).to(place)
            computed = self._client(inputs.to(memory_format=CHANNELS_LAST)).cpu().contiguous()
            for number, features in zip(group, computed, strict=False):
                found[number] = features
                self._keep(image_set, number, features)
        return found

    def _open(self) -> None:
        """Open the cache of this network, if there is room for one."""
        if self._room is None or self._owner:
            return
        self._owner = f"{weights_digest(self._client.state_dict())} {self._spec.mean} {self._spec.std}"
        if self._cache is None or self._cache.owner != self._owner:
            self._cache = FeatureCache(self._room, self._owner, self._shape)

    def _kept(self, image_set: LabelledImages, number: int) -> Tensor | None:
        """The cached features of an image that this process has read; None: there are none."""
        key = self._keys.get((id(image_set), number))
        features = None if key is None or self._cache is None else self._cache.get(key)
        return None if features is None else torch.from_numpy(features.copy())

    def _keep(self, image_set: LabelledImages, number: int, features: Tensor) -> None:
        if self._cache is not None:
            self._cache.put(self._keys[id(image_set), number], features.numpy())
