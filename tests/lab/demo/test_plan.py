# SPDX-License-Identifier: Apache-2.0
"""What a demo starts: three depths of any network, shards without overlap, a folder of its own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from splitee.errors import NetworkError, StateError
from splitee_lab.demo.fleet import Demo, plan, run, spread_cuts
from splitee_lab.demo.progress import LineDisplay


def test_resnet18_is_cut_after_layer1_layer2_and_layer3() -> None:
    devices = plan("resnet18", 10, 5)
    assert [device.cut for device in devices] == [3, 5, 7, 3, 5]
    assert [device.shard for device in devices] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert [device.id for device in devices] == ["pi-1", "pi-2", "pi-3", "pi-4", "pi-5"]


@pytest.mark.parametrize("network", ["mobilenet_v2", "vgg11_bn", "efficientnet_b0"])
def test_other_networks_are_cut_at_three_depths(network: str) -> None:
    assert len({device.cut for device in plan(network, 10, 3)}) == 3


@pytest.mark.parametrize("stages", range(2, 60))
def test_cuts_are_in_range_and_distinct(stages: int) -> None:
    cuts = spread_cuts(stages)
    assert cuts == sorted(set(cuts))
    assert all(1 <= cut < stages for cut in cuts)
    assert len(cuts) == min(3, stages - 1)


def demo(out: Path, network: str = "resnet18", broker: str = "embedded") -> Demo:
    return Demo(network, "sequential", 1, 3, 1, broker, "fp16", "none", 20, False, out)


def run_demo(wanted: Demo) -> None:
    run(wanted, LineDisplay(Console(quiet=True)), lambda line: None, ExitStack())


def test_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(StateError, match="is not empty: name a new folder"):
        run_demo(demo(tmp_path))
    with pytest.raises(StateError, match=r"report\.json.*: Not a directory|File exists"):
        run_demo(demo(tmp_path / "report.json"))


def test_unknown_network_is_refused_before_a_folder_is_created(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="resnet18"):
        run_demo(demo(tmp_path / "out", network="resnet81"))
    assert not (tmp_path / "out").exists()
