# SPDX-License-Identifier: Apache-2.0
"""How large those messages become that tell of every device, and are sent whole."""

from __future__ import annotations

from splitee.protocol import routes
from splitee.protocol.accuracies import ClassRecall
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fleet import DeviceMetrics, Metrics
from splitee.protocol.rounds import Commit, Participant, RoundOpen

ID = 16  # characters of a device's id, as most are short; 64 are allowed
DIGEST = "0" * 64
MANY = 10**9
SHARE = 0.123456789012345
PARTICIPANT = Participant(
    cut=10, steps=1000, base=1000, samples=MANY, weights=True, soft_labels=1000, fresh=True
)
FIGURES = DeviceMetrics(
    cut=10,
    stage="layer2.1",
    train_samples=MANY,
    held_out_samples=MANY,
    batches=MANY,
    bytes=MANY,
    exit_loss=SHARE,
    trunk_loss=SHARE,
    exit_accuracy=SHARE,
    trunk_accuracy=SHARE,
    adaptive_accuracy=SHARE,
    offload_share=SHARE,
    weakest_class=ClassRecall("a" * ID, MANY, SHARE),
)


def largest_whole(devices: int) -> int:
    """Bytes of the largest message of a fleet that grows with its devices, and does not come in parts."""
    ids = [f"{number:0{ID}}" for number in range(devices)]
    messages: dict[routes.Route, JsonMessage] = {
        routes.ROUND: RoundOpen(
            run=DIGEST,
            round=MANY,
            attempt=MANY**2,
            phase="train",
            participants=dict.fromkeys(ids, PARTICIPANT),
        ),
        routes.COMMIT: Commit(
            run=DIGEST,
            round=MANY,
            attempt=MANY**2,
            digests=dict.fromkeys(ids, DIGEST),
            weights_sha256=DIGEST,
        ),
        routes.METRICS: Metrics(
            run=DIGEST,
            round=MANY,
            rounds=MANY,
            seconds=SHARE,
            devices=dict.fromkeys(ids, FIGURES),
            batches_trained=MANY,
            duplicates_dropped=MANY,
        ),
    }
    return max((len(message.encode()) for route, message in messages.items() if not route.parts), default=0)
