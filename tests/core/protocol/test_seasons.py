# SPDX-License-Identifier: Apache-2.0
"""The seasons of a fleet: their message is bounded, and `status` lists them."""

from __future__ import annotations

import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from splitee.commands.status import render
from splitee.errors import MalformedMessage
from splitee.mqtt.events import Message
from splitee.protocol.accuracies import ClassRecall
from splitee.protocol.fleet import DeviceMetrics, FleetMetrics, Metrics, Profile
from splitee.protocol.fleet_view import FleetView
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.seasons import LARGEST, MOST_CLASSES, MOST_SEASONS, Season, Seasons, bounded, season_of
from splitee.protocol.topics import Topics

TOPICS = Topics("lab")
RUN = RunSpec(protocol=1, run="summer", network="resnet18", num_classes=2, rounds=5)
METRICS = Metrics(
    run="summer",
    round=4,
    rounds=5,
    seconds=20.0,
    devices={name: DeviceMetrics(cut=3, stage="layer1", train_samples=150) for name in ("pi-1", "pi-2")},
    batches_trained=62,
    duplicates_dropped=0,
    fleet=FleetMetrics(
        images=40, exit_accuracy=0.5, adaptive_accuracy=0.75, class_recalls=(ClassRecall("ant", 40, 0.75),)
    ),
)
SPRING = Season(
    run="spring",
    rounds=3,
    ended=1_800_000_000.0,
    devices=2,
    train_images=1200,
    held_out_images=20,
    exit_accuracy=0.25,
    adaptive_accuracy=0.5,
)


def test_season_takes_its_figures_from_the_last_round() -> None:
    found = season_of(METRICS, ended=7.0)
    assert (found.run, found.rounds, found.ended, found.devices) == ("summer", 4, 7.0, 2)
    assert (found.train_images, found.held_out_images) == (300, 40)
    assert (found.exit_accuracy, found.trunk_accuracy, found.adaptive_accuracy) == (0.5, None, 0.75)
    assert found.class_recalls == METRICS.fleet.class_recalls
    many = replace(METRICS.fleet, class_recalls=METRICS.fleet.class_recalls * (MOST_CLASSES + 1))
    assert season_of(replace(METRICS, fleet=many)).class_recalls == ()


def test_message_of_seasons_keeps_the_latest_within_its_size_limit() -> None:
    recalls = tuple(ClassRecall(chr(0x1F40C + n) * 200, 5, 0.5) for n in range(MOST_CLASSES))
    seasons = tuple(replace(SPRING, run=f"r{n}", class_recalls=recalls) for n in range(MOST_SEASONS + 5))
    message = bounded("now", seasons)
    assert len(message.encode()) <= LARGEST
    assert [one.run for one in message.seasons] == [f"r{n}" for n in range(5, MOST_SEASONS + 5)]
    assert message.seasons[-1].class_recalls == recalls and not message.seasons[0].class_recalls
    assert Seasons.decode(message.encode()) == message


@pytest.mark.parametrize(
    "spoiled", [b'"ended":1e300', b'"ended":-1', b'"adaptive_accuracy":7', b'"held_out_images":-1']
)
def test_season_with_a_figure_out_of_bounds_is_malformed(spoiled: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Seasons.decode(b'{"run":"now","seasons":[{"run":"r","rounds":1,%b}]}' % spoiled)


def view() -> FleetView:
    found = FleetView("lab")
    profile = Profile(
        protocol=1,
        instance=1,
        version="0",
        cut=3,
        class_names=("a", "b"),
        train_samples=1,
        held_out_samples=1,
    )
    for topic, message in (
        (TOPICS.run, RUN),
        (TOPICS.metrics, replace(METRICS, devices={})),
        (TOPICS.device("pi-1", "profile"), profile),
        (f"{TOPICS.base}/seasons", Seasons(run="summer", seasons=(SPRING,))),
    ):
        found.take(Message(topic, message.encode(), retained=True), 0.0)
    return found


def shown(fleet: FleetView) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(render(fleet.snapshot(), 0.0))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_status_command_lists_the_current_season_last() -> None:
    fleet = view()
    assert fleet.snapshot().seasons == (SPRING,)
    lines = [line.split() for line in shown(fleet).splitlines()]
    [place] = [number for number, words in enumerate(lines) if words[:1] == ["spring"]]
    assert lines[place] == ["spring", "2027-01-15", "3", "1,200", "20", "25.0", "50.0"]
    assert lines[place + 1] == ["summer", "now", "4", "40", "50.0", "75.0"]


def test_seasons_of_another_run_are_not_shown() -> None:
    fleet = view()
    other = replace(RUN, run="of-its-own")
    fleet.take(Message(TOPICS.run, other.encode(), retained=True), 0.0)
    assert fleet.snapshot().seasons == ()
    assert "spring" not in shown(fleet)
