# SPDX-License-Identifier: Apache-2.0
"""Updates of devices as phrases for tables and logs."""

from __future__ import annotations

from splitee.cli.words import ago, devices, part_of
from splitee.protocol.fields import ReleaseKind
from splitee.protocol.inference import PredictedState
from splitee.protocol.rollouts import DeviceUpdate, Rollout, Update


def describe_updates(update: DeviceUpdate | None) -> dict[ReleaseKind, str]:
    """The updates of a device that are in progress or have failed, but not those in service."""
    if update is None:
        return {}
    of_kind: dict[ReleaseKind, Update] = {"model": update.model, "software": update.software}
    return {
        kind: describe_update(kind, one)
        for kind, one in of_kind.items()
        if one.state is not None and (one.state != "in service" or one.reason)
    }


def describe_update(kind: ReleaseKind, update: Update) -> str:
    """ "model barn-7: downloading 1.2 of 4.0 MB", "software 0.3.0: failed: no space (0.2.0 in service)"."""
    bytes_of = (
        f" {part_of(update.have, update.size)}" if update.state == "downloading" and update.size else ""
    )
    why = f": {update.reason}" if update.reason else ""
    other = f" ({update.installed} in service)" if update.installed not in ("", update.latest) else ""
    return f"{kind} {update.latest}: {update.state}{bytes_of}{why}{other}"


def describe_rollout(rollout: Rollout) -> str:
    """A rollout as a phrase: "model barn-7, 40 devices in 3 waves"."""
    count, waves = sum(wave.devices for wave in rollout.waves), len(rollout.waves)
    return f"{rollout.kind} {rollout.version}, {devices(count)} in {waves} wave{'' if waves == 1 else 's'}"


def describe_predicted_state(state: PredictedState, now: float) -> str:
    """ "cat for 3 min, 0.93". `now`: seconds since the epoch."""
    return f"{state.label} for {ago(now - state.since)}, {state.confidence:.2f}"
