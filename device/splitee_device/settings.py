"""How a device takes part in its fleet: the settings of `splitee device`, checked."""

from __future__ import annotations

from dataclasses import dataclass

from splitee.mqtt.options import LinkOptions
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import DeviceData, Shard, open_data
from splitee_device.inference.options import ServingOptions
from splitee_device.profiler.choice import Preference


@dataclass(frozen=True)
class DeviceSettings:
    """How this device takes part, as `splitee device --help` says it."""

    device: str
    link: LinkOptions
    data: str
    shard: Shard | None
    holdout: float
    limit: int | None
    network: str | None
    cut: int | None  # None: what the profiler recommends
    prefer: Preference
    memory: int | None  # MiB that training may take; None: what there is
    adapt_cut: bool
    adapt_after: int  # rounds
    budget: float  # seconds
    fresh: bool
    threads: int
    stay: bool
    serving: ServingOptions

    @property
    def most_memory(self) -> int | None:
        """Bytes."""
        return None if self.memory is None else self.memory << 20

    def open_data(self, spec: RunSpec) -> DeviceData:
        """Raises DataError."""
        return open_data(
            self.data,
            input_shape=spec.input_shape,
            shard=self.shard,
            holdout=self.holdout,
            seed=spec.seed,
            limit=self.limit,
        )
