"""How a device takes part in its fleet: the settings of `splitee device`, checked."""

from __future__ import annotations

from dataclasses import dataclass

from splitee.errors import ConfigError
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
    lowest_cut: int | None  # that this device may ever be cut at; None: `cut`, or any
    prefer: Preference
    memory: int | None  # MiB that training may take; None: what there is
    adapt_cut: bool
    adapt_after: int  # rounds
    budget: float  # seconds
    fresh: bool
    cache: int  # MiB of features on disk
    threads: int
    stay: bool
    serving: ServingOptions

    def __post_init__(self) -> None:
        """Raises ConfigError: the cut is below the lowest."""
        if self.cut is not None and self.cut < self.floor:
            raise ConfigError(f"--cut {self.cut} is below --lowest-cut {self.lowest_cut}: give one of them")

    @property
    def floor(self) -> int:
        """The lowest cut that this device takes: what its owner said, else what its owner gave."""
        return self.lowest_cut or self.cut or 1

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
