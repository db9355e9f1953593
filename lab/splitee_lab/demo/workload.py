# SPDX-License-Identifier: Apache-2.0
"""A demo's multiply-accumulates, from which the time of a part is estimated by that of earlier parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitee.networks.split import build_for
from splitee.protocol.fleet_view import FleetSnapshot
from splitee.training.compute import fleet_round_macs, round_macs
from splitee_device.training.baseline import standalone_spec
from splitee_lab.methods.baselines import ALONE_EXIT, Baseline


@dataclass(frozen=True)
class Workload:
    """The multiply-accumulates of one round.

    Attributes:
        fleet: what devices and server compute.
        baselines: what training each of them takes, by its name.
        shares: by device, what it computes in the fleet as a share of training the whole network.
    """

    fleet: float
    baselines: Mapping[str, float]
    shares: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """The ratio of all baselines to the fleet."""
        return sum(self.baselines.values()) / self.fleet if self.fleet else 0.0


def workload(snapshot: FleetSnapshot, baselines: Sequence[Baseline]) -> Workload | None:
    """The workload of a run with the devices' present cuts; None: not all devices are known yet."""
    run = snapshot.run
    devices = {
        device.id: (device.train_samples, device.cut)
        for device in snapshot.devices
        if device.train_samples and device.cut is not None
    }
    if run is None or not devices:
        return None
    network = build_for(run, device="meta")
    whole = {device: round_macs(network, run, samples) for device, (samples, _) in devices.items()}
    part = {
        device: fleet_round_macs(network, run, samples, cut) for device, (samples, cut) in devices.items()
    }
    trunks = sum(
        whole[device] - round_macs(network, run, samples, cut) for device, (samples, cut) in devices.items()
    )
    alone = standalone_spec(run)
    each = {}
    for baseline in baselines:
        if baseline.kind == ALONE_EXIT:
            samples, cut = devices[baseline.device]
            each[baseline.name] = fleet_round_macs(network, alone, samples, cut)
        else:
            each[baseline.name] = whole.get(baseline.device, sum(whole.values()))
    shares = {device: part[device] / whole[device] for device in devices}
    return Workload(sum(part.values()) + trunks, each, shares)
