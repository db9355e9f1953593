# SPDX-License-Identifier: Apache-2.0
"""The figures of rollouts for Prometheus: of the rollouts in the published overview."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import GaugeMetricFamily

from splitee.protocol.rollout_progress import devices_by_state
from splitee.protocol.rollouts import Rollouts, RolloutState

OF_ONE = ("rollout", "kind")
BY_STATE = (*OF_ONE, "state")


def rollout_families(overview: Rollouts) -> Iterator[GaugeMetricFamily]:
    """Of each rollout: devices by what they do, its state, and its waves."""
    count = GaugeMetricFamily(
        "splitee_rollout_devices", "Devices of a rollout by what they do", labels=BY_STATE
    )
    state = GaugeMetricFamily(
        "splitee_rollout_state", "1 for the state of a rollout, 0 for others", labels=BY_STATE
    )
    wave = GaugeMetricFamily("splitee_rollout_wave", "The current wave", labels=OF_ONE)
    waves = GaugeMetricFamily("splitee_rollout_waves", "Waves that a rollout has", labels=OF_ONE)
    for of_one, rollout in {(one.rollout, one.kind): one for one in reversed(overview.rollouts)}.items():
        for of_devices, number in devices_by_state(rollout).items():
            count.add_metric((*of_one, of_devices), number)
        for name in get_args(RolloutState):
            state.add_metric((*of_one, name), float(name == rollout.state))
        wave.add_metric(of_one, rollout.wave)
        waves.add_metric(of_one, len(rollout.waves))
    yield from (count, state, wave, waves)
