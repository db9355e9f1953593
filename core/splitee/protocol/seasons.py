# SPDX-License-Identifier: Apache-2.0
"""The runs that a fleet's weights come from, in their order, with their images and accuracies."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from splitee.protocol.accuracies import Accuracies, ClassRecall
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fields import Count, EpochSeconds, Name
from splitee.protocol.fleet import Metrics

MOST_SEASONS = 20  # in a message, the latest ones
MOST_CLASSES = 12  # of a season whose recalls are sent; if there are more, none are
LARGEST = 16 << 10  # bytes of the message; if it would be larger, the earliest seasons omit their recalls


class Season(Accuracies, frozen=True, kw_only=True, omit_defaults=True):
    """One run after its last committed round; accuracies are of the fleet.

    Attributes:
        run: id of the run.
        rounds: rounds that were committed.
        ended: when the last of them was evaluated, in seconds since the epoch; 0: not known.
        devices: number of devices.
        train_images: images for training, of all devices.
        held_out_images: images for the accuracies.
        class_recalls: recalls of the classes, if these are few.
    """

    run: Name
    rounds: Count
    ended: EpochSeconds = 0.0
    devices: Count = 0
    train_images: Count = 0
    held_out_images: Count = 0
    class_recalls: Annotated[tuple[ClassRecall, ...], Meta(max_length=MOST_CLASSES)] = ()


class Seasons(JsonMessage, frozen=True):
    """The earlier runs that the current run's weights come from.

    Attributes:
        run: id of the current run.
        seasons: the earlier runs, in their order.
    """

    run: Name
    seasons: Annotated[tuple[Season, ...], Meta(max_length=MOST_SEASONS)] = ()


def season_of(metrics: Metrics, ended: float = 0.0) -> Season:
    """A run after a round. `metrics`: of that round, with those of the devices."""
    fleet = metrics.fleet
    return Season(
        run=metrics.run,
        rounds=metrics.round,
        ended=ended,
        devices=len(metrics.devices),
        train_images=sum(device.train_samples for device in metrics.devices.values()),
        held_out_images=fleet.images,
        class_recalls=fleet.class_recalls if len(fleet.class_recalls) <= MOST_CLASSES else (),
        exit_accuracy=fleet.exit_accuracy,
        trunk_accuracy=fleet.trunk_accuracy,
        adaptive_accuracy=fleet.adaptive_accuracy,
        offload_share=fleet.offload_share,
    )


def bounded(run: str, seasons: tuple[Season, ...]) -> Seasons:
    """The message for `run`: the latest of `seasons`, with as many class recalls as fit."""
    kept = list(seasons[-MOST_SEASONS:])
    length = len(Seasons(run=run, seasons=tuple(kept)).encode())
    for place, season in enumerate(kept):
        if length <= LARGEST:
            break
        kept[place] = msgspec.structs.replace(season, class_recalls=())
        length -= len(msgspec.json.encode(season)) - len(msgspec.json.encode(kept[place]))
    return Seasons(run=run, seasons=tuple(kept))
