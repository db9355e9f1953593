"""Features of a client network whose stages are all frozen: an image always gives the same, to the bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from splitee.protocol.run_spec import RunSpec
from splitee.training.state import weights_digest
from splitee_device.data.batches import Batches
from splitee_device.data.images import ImageSet
from splitee_device.training.feature_cache import CacheRoom, FeatureCache, key_of

GROUP = 32  # images that are computed together, always: another number could change the last bits


class FrozenFeatures:
    """Takes images through the network, or out of the cache what was computed before.

    The bits are the same with a cache, without one, and with one that is full.
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
        """Keep features there; None: nowhere."""
        self._room = room if room is not None and room.most else None

    def forget(self) -> None:
        """The network may have got other weights."""
        self._owner = ""

    @torch.no_grad()
    def of(
        self, image_set: ImageSet, batch: Batches, indices: npt.NDArray[np.integer]
    ) -> tuple[Tensor, Tensor]:
        """The features (B, *shape) of images in evaluation mode, and their labels (B,).

        Args:
            batch: normalises those of `image_set`.
        """
        self._open()
        found = {int(index): self._kept(image_set, int(index)) for index in indices}
        missing = [index for index, features in found.items() if features is None]
        self._client.eval()
        for start in range(0, len(missing), GROUP):
            group = missing[start : start + GROUP]
            images, _ = batch(np.resize(group, GROUP))  # a short group is filled up with the same once more
            for index, features in zip(group, self._client(images), strict=False):
                found[index] = features
                self._keep(image_set, index, features)
        rows = [features for index in indices if (features := found[int(index)]) is not None]
        return torch.stack(rows), torch.from_numpy(image_set.labels[indices]).to(rows[0].device)

    def _open(self) -> None:
        """The cache of this network, where there is room for one."""
        if self._room is None or self._owner:
            return
        self._owner = f"{weights_digest(self._client.state_dict())} {self._spec.mean} {self._spec.std}"
        if self._cache is None or self._cache.owner != self._owner:
            self._cache = FeatureCache(self._room, self._owner, self._shape)

    def _kept(self, image_set: ImageSet, index: int) -> Tensor | None:
        if self._cache is None:
            return None
        known = id(image_set), index
        if known not in self._keys:
            self._keys[known] = key_of(image_set.take(np.array([index])))
        features = self._cache.get(self._keys[known])
        return None if features is None else torch.from_numpy(features.copy())

    def _keep(self, image_set: ImageSet, index: int, features: Tensor) -> None:
        if self._cache is not None:
            self._cache.put(self._keys[id(image_set), index], features.numpy())
