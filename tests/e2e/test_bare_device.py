# SPDX-License-Identifier: Apache-2.0
"""A device that was written from docs/reference/protocol.md alone takes part in a run, beside a usual one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fleets import LONGEST, Fleet

from splitee_lab.local.brokers import RunningBroker

SCRIPT = Path(__file__).parents[2] / "examples" / "bare_device.py"
CLASSES = "T-shirt/top,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot"


def test_bare_device_trains_with_its_own_features(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    address = mosquitto_broker.address
    flags = ("--broker", f"{address.host}:{address.port}", "--fleet", "bare", "--id", "bare", "--cut", "3")
    with Fleet(str(address), "bare", tmp_path) as fleet:
        fleet.server("--window", "3", devices=2)
        fleet.device("pi-1", 1)
        bare = subprocess.run(
            [sys.executable, SCRIPT, *flags, "--classes", CLASSES],
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        assert bare.returncode == 0, bare.stderr
        assert bare.stdout == "finished: 2 rounds committed\n"
        assert fleet.wait() == [0, 0]
        report = fleet.report()
    device = next(device for device in report["devices"] if device["id"] == "bare")
    assert (device["cut"], device["train_samples"], device["batches"]) == (3, 330, 2 * (330 // 32))
    assert 0.5 < device["exit_accuracy"] <= 1  # its features tell the classes apart
    assert report["rejected"] == 0
