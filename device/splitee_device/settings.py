# SPDX-License-Identifier: Apache-2.0
"""How a device takes part in its fleet: the settings of `splitee device`, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from splitee.cli.precision import WantedPrecision
from splitee.errors import ConfigError
from splitee.mqtt.options import LinkOptions
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.device_images import DeviceImages
from splitee_device.data.division import Division, read_division
from splitee_device.data.images import DeviceData, Shard, open_data
from splitee_device.data.storage import Storage, most_for_images
from splitee_device.inference.agreement_options import AgreementOptions
from splitee_device.inference.options import ServingOptions
from splitee_device.profiler.choice import Preference


@dataclass(frozen=True)
class DeviceSettings:
    """How this device takes part, as described in `splitee device --help`."""

    device: str
    link: LinkOptions
    data: str
    test: str | None  # held out instead of a share of `data`
    workers: int  # threads that decode images which do not fit in memory
    shard: Shard | None
    holdout: float
    limit: int | None
    network: str | None
    cut: int | None  # None: what the profiler recommends
    lowest_cut: int | None  # that this device accepts; None: `cut`, or any
    prefer: Preference
    memory: int | None  # MiB that training may use; None: all that is available
    adapt_cut: bool
    adapt_after: int  # rounds
    budget: float  # seconds
    fresh: bool
    cache: int  # MiB of features on disk
    threads: int
    precision: WantedPrecision
    stay: bool
    baseline: bool  # whether to train alone, too, before it joins
    serving: ServingOptions
    agreement: AgreementOptions

    def __post_init__(self) -> None:
        """Raises ConfigError: the cut is below the lowest."""
        if self.cut is not None and self.cut < self.floor:
            raise ConfigError(f"--cut {self.cut} is below --lowest-cut {self.lowest_cut}: give one of them")

    @property
    def floor(self) -> int:
        """The lowest cut that this device accepts: --lowest-cut, else --cut, else 1."""
        return self.lowest_cut or self.cut or 1

    @property
    def most_memory(self) -> int | None:
        """Bytes."""
        return None if self.memory is None else self.memory << 20

    def open_images(self, spec: RunSpec, folder: Path, tick: Callable[[], None]) -> DeviceImages:
        """The images for a run.

        Args:
            folder: of the device's state, which records what each image was used for.
            tick: is called now and then meanwhile.

        Raises:
            DataError: as its message says.
        """
        folders = [Path(name).expanduser() for name in (self.data, self.test) if name]
        return DeviceImages(
            partial(self._open_data, spec, folder, tick),
            read_division(folder, self.holdout),
            tuple(path for path in folders if path.is_dir()),
        )

    def _open_data(
        self, spec: RunSpec, folder: Path, tick: Callable[[], None], division: Division | None
    ) -> DeviceData:
        return open_data(
            self.data,
            input_shape=spec.input_shape,
            fit=spec.fit,
            region=self.serving.region,
            shard=self.shard,
            holdout=self.holdout,
            seed=spec.seed,
            limit=self.limit,
            test=self.test,
            division=division,
            class_names=spec.class_names,
            storage=Storage(most_for_images(self.most_memory), self.workers, folder),
            tick=tick,
        )
