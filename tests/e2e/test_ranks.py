# SPDX-License-Identifier: Apache-2.0
"""Servers side by side under torchrun: the weights of one process, whatever becomes of a rank."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fleets import Fleet, in_one_process

from splitee_lab.local.brokers import RunningBroker

BIN = Path(sys.executable).parent
ROUNDS = 2


def ranks(count: int, *flags: str) -> list[str]:
    """What runs a `splitee` command as so many ranks."""
    alone = ("--standalone", "--nproc-per-node", str(count))
    return [str(BIN / "torchrun"), *alone, *flags, str(BIN / "splitee")]


@pytest.mark.slow(20)
@pytest.mark.mosquitto
@pytest.mark.parametrize("count", [2])
def test_ranks_train_the_weights_of_one_process(
    count: int, mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    with Fleet(str(mosquitto_broker.address), f"ranks-{count}", tmp_path) as fleet:
        flags = "--strategy", "averaging", "--client-averaging", "layerwise"
        fleet.server(*flags, rounds=ROUNDS, release=True, program=ranks(count))
        fleet.three_devices()
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    expected = in_one_process("averaging", "step", ROUNDS, averaging="layerwise")
    assert report["weights_sha256"] == expected
