# SPDX-License-Identifier: Apache-2.0
"""The server's state: a torn file falls back to an earlier one, and another run's state is refused."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from msgspec.structs import replace

from splitee.cli.run_flags import build_run_spec
from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.protocol.fleet import DeviceMetrics, FleetMetrics, Metrics
from splitee.protocol.run_spec import RunSpec
from splitee.training.history import course
from splitee_server.rounds.checkpoints import Checkpoints, Committed

SPEC = RunSpec(protocol=1, run="run-a", network="resnet18", num_classes=10, rounds=5, seed=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Checkpoints]:
    directory = StateDirectory(tmp_path / "server")
    yield Checkpoints(directory)
    directory.close()


def committed(number: int) -> Committed:
    member = {"device": "pi-1", "cut": 2, "committed": number}
    strategy = {"trunk": {"weight": torch.full((3,), float(number))}}
    return Committed(
        number, strategy, {}, [member], ("cat", "dog"), f"{number:064x}", duplicates=7, seconds=1.5
    )


def metrics(number: int, seconds: float = 1.0, *, right: int | None = None) -> Metrics:
    """`right`: correct predictions for 100 held-out images; None: there are no images."""
    device = DeviceMetrics(cut=2, stage="layer1.0", train_samples=10, trunk_accuracy=0.5)
    return Metrics(
        run="run-a",
        round=number,
        rounds=5,
        seconds=seconds,
        devices={"pi-1": device},
        batches_trained=number,
        duplicates_dropped=0,
        fleet=FleetMetrics() if right is None else FleetMetrics(images=100, adaptive_accuracy=right / 100),
    )


def tear(store: Checkpoints, number: int) -> None:
    file = store.path / f"round-{number:06d}.state"
    os.truncate(file, file.stat().st_size // 2)


def test_newest_commit_is_loaded_and_only_two_rounds_are_kept(store: Checkpoints) -> None:
    assert store.load() is None
    for number in (1, 2, 3):
        store.save(committed(number))
    loaded = store.load()
    assert loaded is not None
    trunk = loaded.strategy.pop("trunk")
    assert torch.equal(trunk["weight"], torch.full((3,), 3.0))
    assert loaded == Committed(3, {}, *list(vars(committed(3)).values())[2:])
    assert store.newest() == 3
    assert sorted(file.name for file in store.path.glob("round-*")) == [
        "round-000002.state",
        "round-000003.state",
    ]


def test_torn_round_falls_back_to_the_previous_one_with_one_warning(
    store: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2, 3):
        store.save(committed(number))
    tear(store, 3)
    loaded = store.load()
    assert loaded is not None
    assert loaded.round == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"state: {store.path / 'round-000003.state'} is torn; it is ignored"
    ]
    tear(store, 2)
    assert store.load() is None
    store.save(committed(1))
    assert [record.levelno for record in caplog.records] == 3 * [logging.WARNING]


def test_run_with_the_same_settings_is_resumed(store: Checkpoints) -> None:
    assert store.open(SPEC, fresh=False) == SPEC
    store.save(committed(1))
    assert store.open(replace(SPEC, run="run-b"), fresh=False).run == "run-a"
    assert store.newest() == 1


def test_fresh_run_deletes_the_state_before_and_keeps_files_of_others(store: Checkpoints) -> None:
    """Somebody gives --state a folder that has files of their own."""
    store.open(SPEC, fresh=False, weights=b"initial")
    store.save(committed(1))
    store.add_metrics(metrics(1))
    store.save_dismissed(["pi-9"])
    store.write_report({"run": "run-a"})
    own = [store.path / name for name in ("thesis.odt", "device.toml", "round-1.md")]
    for path in own:
        path.write_bytes(b"the owner's")
    store.open(replace(SPEC, run="run-b"), fresh=True)
    assert all(path.read_bytes() == b"the owner's" for path in own)
    left = {path.name for path in store.path.iterdir()} - {path.name for path in own}
    assert left == {".lock", "run.json"}


def test_run_with_other_settings_is_refused_unless_fresh(store: Checkpoints) -> None:
    store.open(SPEC, fresh=False)
    store.save(committed(1))
    other = replace(SPEC, run="run-b", network="resnet34", batch_size=9)
    with pytest.raises(StateError) as refusal:
        store.open(other, fresh=False)
    words = str(refusal.value)
    assert "holds run run-a with other settings" in words
    assert "network 'resnet18' there, 'resnet34' here; batch_size 32 there, 9 here" in words
    assert "--fresh starts over" in words
    assert store.newest() == 1
    assert store.open(other, fresh=True) == other
    assert store.newest() == 0
    assert store.open(other, fresh=False) == other


def test_number_of_rounds_may_change_but_not_below_the_committed_ones(store: Checkpoints) -> None:
    store.open(SPEC, fresh=False)
    for number in (1, 2, 3):
        store.save(committed(number))
    assert store.open(replace(SPEC, run="run-b", rounds=8), fresh=False) == replace(SPEC, rounds=8)
    assert store.open(replace(SPEC, rounds=8), fresh=False) == replace(SPEC, rounds=8)
    assert store.open(replace(SPEC, rounds=3), fresh=False) == replace(SPEC, rounds=3)
    with pytest.raises(StateError, match=r"--rounds 2: 3 rounds of run run-a are committed .* at least 3"):
        store.open(replace(SPEC, rounds=2), fresh=False)


def test_run_begun_without_fused_steps_resumes_without_them(store: Checkpoints) -> None:
    store.open(SPEC, fresh=False)
    assert "fused" not in json.loads((store.path / "run.json").read_bytes())
    here = build_run_spec(run="run-b", network="resnet18", num_classes=10, rounds=5, seed=1)
    assert here.fused
    assert store.open(here, fresh=False) == SPEC
    assert store.open(here, fresh=True).fused


def test_best_round_is_kept_in_addition_to_the_newest_two(store: Checkpoints) -> None:
    for number, right in enumerate((30, 80, 60, 60, 78, 50, 50), start=1):
        store.save(committed(number))
        store.add_metrics(metrics(number, right=right))
    kept = [int(file.stem.partition("-")[2]) for file in sorted(store.path.glob("round-*"))]
    assert kept == [5, 6, 7]
    best = course(store.history(), 7)
    assert best.best is not None
    assert (best.best.round, best.without_improvement) == (5, 5)
    found = store.load(5)
    assert found is not None
    assert found.round == 5


@pytest.mark.parametrize(
    ("right", "best", "without_improvement"),
    [
        ((50, 60, 60), 3, 1),  # ties: the later
        ((50, 80, 77), 3, 1),  # within one standard error, 4 points here
        ((50, 80, 74), 2, 1),
        ((80, 77, 90, 70), 3, 1),
        ((None, None), None, 0),
        ((80, None, 40, 40), 1, 2),  # a round without held-out images does not count
    ],
)
def test_best_round_is_the_latest_within_one_standard_error_of_the_highest(
    right: tuple[int | None, ...], best: int | None, without_improvement: int
) -> None:
    history = [metrics(number, right=hits) for number, hits in enumerate(right, start=1)]
    found = course([*history, metrics(len(right) + 1, right=100)], len(right))  # the last is not committed
    assert (found.best.round if found.best else None, found.without_improvement) == (
        best,
        without_improvement,
    )


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"run": "\xff"}'])
def test_run_with_damaged_settings_is_not_replaced_unless_asked_for(
    store: Checkpoints, damaged: bytes
) -> None:
    """Its committed rounds are still there, and its settings may be in a backup."""
    store.open(SPEC, fresh=False)
    store.save(committed(1))
    (store.path / "run.json").write_bytes(damaged)
    with pytest.raises(StateError, match=r"run\.json is damaged.*--fresh starts over"):
        store.open(SPEC, fresh=False)
    assert store.load() is not None
    assert store.open(SPEC, fresh=True) == SPEC
    assert store.load() is None


def test_run_file_of_another_release_is_refused(store: Checkpoints) -> None:
    (store.path / "run.json").write_text('{"run": "run-a", "network": "resnet18"}')
    with pytest.raises(StateError, match=r"not of this release .* --fresh starts over"):
        store.open(SPEC, fresh=False)


def test_last_metrics_of_a_round_replace_earlier_ones(store: Checkpoints) -> None:
    assert store.evaluated(1) is None
    for line in (metrics(1), metrics(2, seconds=2.0), metrics(2, seconds=3.0)):
        store.add_metrics(line)
    found = store.evaluated(2)
    assert found is not None
    assert found.seconds == 3.0
    assert store.evaluated(3) is None


def test_commit_does_not_reread_the_metrics_history(store: Checkpoints) -> None:
    store.open(SPEC, fresh=False)
    for number in range(1, 201):
        store.add_metrics(metrics(number, right=number % 90))
    size = (store.path / "history.jsonl").stat().st_size
    before = psutil.Process().io_counters().read_chars
    for number in (201, 202, 203):
        store.save(committed(number))
    assert psutil.Process().io_counters().read_chars - before < size
    best = store.course(203).best
    assert best is not None
    assert best.round == 179
    assert store.evaluated(179) == metrics(179, right=89)


def test_reopened_history_gives_the_same_course_and_metrics(store: Checkpoints) -> None:
    store.open(SPEC, fresh=False)
    for number, right in ((1, 50), (2, 80), (3, 60), (2, 70)):
        store.add_metrics(metrics(number, right=right))
    before = store.course(3)
    store.open(SPEC, fresh=False)
    store.add_metrics(metrics(4, right=10))
    assert store.course(3) == before
    assert store.evaluated(2) == metrics(2, right=70)
    assert store.evaluated(4) == metrics(4, right=10)
    assert store.course(4).without_improvement == 2


def test_run_whose_history_is_no_file_is_refused_in_one_line(store: Checkpoints) -> None:
    store.open(SPEC, fresh=False)
    (store.path / "history.jsonl").mkdir()
    with pytest.raises(StateError, match=r"history\.jsonl cannot be read: Is a directory"):
        store.open(SPEC, fresh=False)


def test_torn_last_line_of_the_history_is_dropped_and_logged_once(
    store: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    store.open(SPEC, fresh=False)
    for number in (1, 2):
        store.add_metrics(metrics(number))
    history = store.path / "history.jsonl"
    os.truncate(history, history.stat().st_size - 20)
    store.open(SPEC, fresh=False)
    assert store.evaluated(2) is None
    store.add_metrics(metrics(2, seconds=4.0))
    found = store.evaluated(2)
    assert found is not None
    assert found.seconds == 4.0
    assert [record.getMessage() for record in caplog.records] == [
        f"state: the last line of {history} is torn; it is dropped"
    ]
