# SPDX-License-Identifier: Apache-2.0
"""Event files for TensorBoard: each round is written once, also after a restart of the server."""

from __future__ import annotations

from pathlib import Path

import pytest
from event_files import curves, events

from splitee.errors import StateError
from splitee.protocol.accuracies import ClassRecall
from splitee.protocol.fleet import DeviceMetrics, FleetMetrics, Metrics
from splitee_server.monitoring import tensorboard as module
from splitee_server.monitoring.tensorboard import TensorBoard


def metrics(number: int, *, run: str = "run-a", devices: dict[str, int] | None = None) -> Metrics:
    """A round in which a device's exit loss is its cut divided by the round."""
    return Metrics(
        run=run,
        round=number,
        rounds=9,
        seconds=10.0 * number,
        devices={
            device: DeviceMetrics(
                cut=cut,
                stage=f"stage{cut}",
                train_samples=8,
                bytes=100 * number,
                exit_loss=cut / number,
                held_out_samples=20,
                exit_accuracy=None if number == 1 else 0.5,
            )
            for device, cut in (devices or {"pi-1": 2, "pi-2": 4, "pi-3": 4}).items()
        },
        batches_trained=0,
        duplicates_dropped=0,
    )


def test_each_device_and_the_mean_of_each_cut_have_a_folder(tmp_path: Path) -> None:
    history: list[Metrics] = []
    watcher = TensorBoard(tmp_path, lambda: history)
    for number in (1, 2):
        history.append(metrics(number))
        watcher.on_evaluated(history[-1])
    found = curves(tmp_path)
    expected = ("run-a/cut-2", "run-a/cut-2/pi-1", "run-a/cut-4", "run-a/cut-4/pi-2", "run-a/cut-4/pi-3")
    assert sorted(found) == list(expected)
    assert found["run-a/cut-4/pi-2"] == {
        "loss/exit": [(1, 4.0), (2, 2.0)],
        "accuracy/exit": [(2, 0.5)],
        "bytes/sent": [(1, 100.0), (2, 200.0)],
        "images/held_out": [(1, 20.0), (2, 20.0)],
    }
    assert found["run-a/cut-4"]["loss/exit"] == [(1, 4.0), (2, 2.0)]


def test_mean_of_a_cut_counts_each_of_its_devices(tmp_path: Path) -> None:
    one, other = metrics(2, devices={"pi-1": 3}), metrics(4, devices={"pi-2": 3})
    both = Metrics(**{**_fields(one), "devices": {**one.devices, **other.devices}})
    TensorBoard(tmp_path, lambda: [both]).on_evaluated(both)
    assert curves(tmp_path)["run-a/cut-3"]["bytes/sent"] == [(2, 300.0)]


def _fields(value: Metrics) -> dict[str, object]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


def test_fleet_folder_has_accuracies_and_the_recall_of_each_class(tmp_path: Path) -> None:
    fleet = FleetMetrics(images=40, trunk_accuracy=0.75, class_recalls=(ClassRecall("glass", 10, 0.5),))
    evaluated = Metrics(**{**_fields(metrics(2)), "fleet": fleet})  # type: ignore[arg-type]
    TensorBoard(tmp_path, lambda: [evaluated]).on_evaluated(evaluated)
    assert curves(tmp_path)["run-a/fleet"] == {
        "images/held_out": [(2, 40.0)],
        "accuracy/trunk": [(2, 0.75)],
        "recall/glass": [(2, 0.5)],
        "images/glass": [(2, 10.0)],
    }


def test_resumed_server_writes_each_round_once(tmp_path: Path) -> None:
    history = [metrics(1), metrics(2)]
    before = TensorBoard(tmp_path, lambda: history)
    before.on_evaluated(history[-1])
    # The server was killed with round 3 in the history but not in its state, and repeats round 3.
    history += [metrics(3), metrics(3, devices={"pi-1": 6})]
    after = TensorBoard(tmp_path, lambda: history)
    after.on_evaluated(history[1])
    assert curves(tmp_path)["run-a/cut-2/pi-1"]["loss/exit"] == [(1, 2.0), (2, 1.0)]
    after.on_evaluated(history[3])
    assert curves(tmp_path)["run-a/cut-6/pi-1"]["loss/exit"] == [(3, 2.0)]
    again = TensorBoard(tmp_path, lambda: history)
    again.on_evaluated(history[3])
    found = curves(tmp_path)
    assert found["run-a/cut-2/pi-1"]["loss/exit"] == [(1, 2.0), (2, 1.0)]
    assert found["run-a/cut-6/pi-1"]["loss/exit"] == [(3, 2.0)]


def test_curves_of_another_run_stay(tmp_path: Path) -> None:
    for run in ("run-a", "run-b"):
        TensorBoard(tmp_path, lambda run=run: [metrics(1, run=run)]).on_evaluated(metrics(1, run=run))  # type: ignore[misc]
    assert {name.split("/")[0] for name in curves(tmp_path)} == {"run-a", "run-b"}


def test_wall_times_of_rounds_differ_by_the_seconds_of_the_run(tmp_path: Path) -> None:
    """Rounds are as far apart as the run's own seconds, however long the server was stopped."""
    TensorBoard(tmp_path, lambda: [metrics(1), metrics(4)]).on_evaluated(metrics(4))
    (path,) = (tmp_path / "run-a" / "cut-2" / "pi-1").iterdir()
    times = [event.wall_time for event in events(path) if event.HasField("summary")]
    assert times[1] - times[0] == pytest.approx(30.0)


def test_large_fleet_has_curves_of_some_devices_and_of_all_cuts(tmp_path: Path) -> None:
    many = metrics(2, devices={f"pi-{index:03}": 1 + index % 2 for index in range(module.DEVICES + 10)})
    TensorBoard(tmp_path, lambda: [many]).on_evaluated(many)
    found = curves(tmp_path)
    assert len([name for name in found if name.count("/") == 2]) == module.DEVICES
    assert {"run-a/cut-1", "run-a/cut-2"} <= set(found)


def test_unwritable_folder_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"--tensorboard .*/file/x: .*; choose another directory"):
        TensorBoard(tmp_path / "file" / "x", list)


def test_folder_that_fails_later_is_logged_and_its_curves_are_made_up_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history = [metrics(1)]
    watcher = TensorBoard(tmp_path / "curves", lambda: history)
    (tmp_path / "curves").rename(tmp_path / "away")
    (tmp_path / "curves").write_text("")
    watcher.on_evaluated(history[0])
    assert "round 1: Not a directory" in caplog.text
    (tmp_path / "curves").unlink()
    history.append(metrics(2))
    watcher.on_evaluated(history[1])
    assert curves(tmp_path / "curves")["run-a/cut-2/pi-1"]["loss/exit"] == [(1, 2.0), (2, 1.0)]
