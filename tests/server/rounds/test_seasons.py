# SPDX-License-Identifier: Apache-2.0
"""The chain of earlier runs in a server's state: read from the earlier run's state, and kept without it."""

from __future__ import annotations

import logging
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from splitee.durable import StateDirectory
from splitee.protocol.fleet import DeviceMetrics, FleetMetrics, Metrics
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.seasons import Season, bounded
from splitee_server.rounds.checkpoints import Checkpoints
from splitee_server.rounds.seasons import SEASONS, seasons_before, seasons_up_to

SPEC = RunSpec(protocol=1, run="spring", network="resnet18", num_classes=2, rounds=5)


def figures(run: str, number: int, images: int) -> Metrics:
    return Metrics(
        run=run,
        round=number,
        rounds=5,
        seconds=1.0,
        devices={"pi-1": DeviceMetrics(cut=1, stage="layer1", train_samples=images)},
        batches_trained=1,
        duplicates_dropped=0,
        fleet=FleetMetrics(images=images // 10, adaptive_accuracy=number / 10),
    )


def run_season(
    state: Path, run: str, rounds: int, images: int, after: Path | None = None, at: int = 0
) -> None:
    """A server's state after a run; `after`: the state that it went on from, with `at` committed rounds."""
    with closing(StateDirectory(state)) as directory:
        store = Checkpoints(directory)
        before = seasons_up_to(after, after.name, at) if after is not None else ()
        seasons = bounded(run, before) if before else None
        store.open(replace(SPEC, run=run), fresh=False, seasons=seasons)
        for number in range(1, rounds + 1):
            store.add_metrics(figures(run, number, images))


def test_season_chain_is_kept_without_the_states_of_earlier_runs(tmp_path: Path) -> None:
    spring, summer, autumn = (tmp_path / name for name in ("spring", "summer", "autumn"))
    run_season(spring, "spring", rounds=3, images=100)
    run_season(summer, "summer", rounds=2, images=300, after=spring, at=2)
    shutil.rmtree(spring)
    run_season(autumn, "autumn", rounds=1, images=500, after=summer, at=2)
    shutil.rmtree(summer)
    with closing(StateDirectory(autumn)) as directory:
        kept = Checkpoints(directory).seasons()
    assert kept is not None and kept.run == "autumn"
    found = [(one.run, one.rounds, one.train_images, one.held_out_images) for one in kept.seasons]
    assert found == [("spring", 2, 100, 10), ("summer", 2, 300, 30)]
    assert [one.adaptive_accuracy for one in kept.seasons] == [0.2, 0.2]
    assert all(one.ended > 0 for one in kept.seasons)


def test_season_without_an_evaluation_is_listed(tmp_path: Path) -> None:
    run_season(tmp_path / "spring", "spring", rounds=0, images=1)
    assert seasons_up_to(tmp_path / "spring", "spring", 4) == (Season(run="spring", rounds=4),)


def test_first_run_has_no_earlier_seasons_and_fresh_start_drops_them(tmp_path: Path) -> None:
    spring, summer = tmp_path / "spring", tmp_path / "summer"
    run_season(spring, "spring", rounds=1, images=100)
    run_season(summer, "summer", rounds=1, images=100, after=spring, at=1)
    with closing(StateDirectory(spring)) as directory:
        assert Checkpoints(directory).seasons() is None
    with closing(StateDirectory(summer)) as directory:
        store = Checkpoints(directory)
        store.open(SPEC, fresh=True)
        assert store.seasons() is None


@pytest.mark.parametrize("content", [b"", b"{}", b'{"run":"x","seasons":[{"run":"/","rounds":1}]}'])
def test_damaged_season_chain_is_ignored_and_logged(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / SEASONS).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert seasons_before(tmp_path) == ()
    assert "earlier seasons are not shown" in caplog.text
