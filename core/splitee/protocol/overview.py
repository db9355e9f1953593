# SPDX-License-Identifier: Apache-2.0
"""Messages for viewers of a fleet: its network, curves over the rounds, and the devices waited for."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from splitee.protocol.accuracies import ConfusionMatrix
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fields import Count, EpochSeconds, Fraction, Name, NonNegative, Positive, RunPhase, Text

MOST_WAITED_FOR = 100  # devices that are named
MOST_POINTS = 200  # of a curve; a longer run's is thinned
MOST_CURVES = 32  # devices of a fleet whose devices have curves of their own


class WaitedFor(msgspec.Struct, frozen=True):
    """A device whose next message the run needs to continue.

    Attributes:
        device: its id.
        since: seconds since the epoch, by the server's clock.
    """

    device: Name
    since: EpochSeconds


class Timing(JsonMessage, frozen=True):
    """The times of the current phase, and the estimated end of the run.

    Attributes:
        run: id of the run.
        round: number of the round, as in the opening.
        attempt: attempt of the opening.
        phase: the phase.
        opened: seconds since the epoch at which the phase was opened, by the server's clock.
        waiting: devices that the run has waited for, for some seconds; the longest first, at most 100.
        estimate: estimated time at which the last round is evaluated, in seconds since the epoch, by the
            median duration of the latest rounds; with `--stop-after`, if no later round is better; none
            before a round has ended.
    """

    run: Text
    round: Count
    attempt: Count
    phase: RunPhase
    opened: EpochSeconds
    waiting: Annotated[tuple[WaitedFor, ...], Meta(max_length=MOST_WAITED_FOR)] = ()
    estimate: EpochSeconds | None = None


class NetworkStage(msgspec.Struct, frozen=True):
    """A stage of the network; a cut comes after one.

    Attributes:
        name: name of the stage.
        features: shape of its output, without the batch.
        parameters: number of its parameters.
    """

    name: Text
    features: Annotated[tuple[Positive, ...], Meta(max_length=8)]
    parameters: Count


class NetworkStages(JsonMessage, frozen=True):
    """The stages of a run's network, after which it may be cut.

    Attributes:
        run: id of the run.
        stages: all stages in their order; there is no cut after the last one.
    """

    run: Text
    stages: Annotated[tuple[NetworkStage, ...], Meta(max_length=1000)]


class HistoryPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fleet in one evaluated round: accuracies over the held-out images of all devices.

    Attributes:
        round: the round.
        time: seconds since the epoch at which it was evaluated; 0: not known.
        seconds: seconds since the run began, without those in which no server ran.
        exit: accuracy of the exits alone.
        trunk: accuracy of the trunk alone.
        adaptive: accuracy where the exit predicts up to the threshold and the trunk above it.
    """

    round: Count
    time: EpochSeconds = 0.0
    seconds: NonNegative = 0.0
    exit: Fraction | None = None
    trunk: Fraction | None = None
    adaptive: Fraction | None = None


class Baselines(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Accuracies on the same held-out images without a fleet; None: not known.

    Attributes:
        majority: of predicting the most frequent class for each image.
        alone: of exits that devices trained alone for as many rounds, weighted by their held-out images.
    """

    majority: Fraction | None = None
    alone: Fraction | None = None


class History(JsonMessage, frozen=True):
    """The fleet's accuracy over the rounds.

    Attributes:
        run: id of the run.
        points: evaluated rounds in their order, up to the last one; of a long run a part of them.
        baselines: accuracies to compare the curves with.
    """

    run: Text
    points: Annotated[tuple[HistoryPoint, ...], Meta(max_length=MOST_POINTS)]
    baselines: Baselines = Baselines()


class DevicePoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device in one evaluated round, on its held-out images.

    Attributes:
        round: the round.
        exit: accuracy of its exit alone.
        trunk: accuracy of the trunk alone.
        adaptive: accuracy where its exit predicts up to the threshold and the trunk above it.
    """

    round: Count
    exit: Fraction | None = None
    trunk: Fraction | None = None
    adaptive: Fraction | None = None


class DeviceHistory(JsonMessage, frozen=True):
    """A device's accuracy over the rounds, in a fleet of up to 32 devices.

    Attributes:
        run: id of the run.
        points: as in `History`, rounds in which the device was evaluated.
    """

    run: Text
    points: Annotated[tuple[DevicePoint, ...], Meta(max_length=MOST_POINTS)]


class FleetConfusion(JsonMessage, frozen=True):
    """The fleet's confusion matrix.

    Attributes:
        run: id of the run.
        round: round that was evaluated.
        confusion: over the held-out images of all devices; none with many classes.
    """

    run: Text
    round: Count
    confusion: ConfusionMatrix | None = None
