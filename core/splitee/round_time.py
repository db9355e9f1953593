# SPDX-License-Identifier: Apache-2.0
"""The duration of a device's round: training and upload overlap, so the slower of them sets the pace."""

from __future__ import annotations


def pace(compute: float, upload: float, round_trip: float = 0.0, window: int = 8) -> float:
    """Seconds from one batch to the next: the slowest of training, sending, and the window's turnover.

    Args:
        compute: seconds to train and encode a batch.
        upload: seconds to send a batch.
        round_trip: seconds until an acknowledgement of the server is back.
        window: batches that may be unacknowledged.
    """
    return max(compute, upload, (upload + round_trip) / window)


def round_seconds(
    steps: int, compute: float, upload: float, round_trip: float = 0.0, window: int = 8
) -> float:
    """Seconds from the round's start until the last of its `steps` batches is acknowledged.

    The first batch is trained before anything can be sent. Then a batch is done every `pace`. The last batch
    must still be sent and acknowledged. The server's own work on a batch is not included, because the device
    does not know it.
    """
    return compute + (steps - 1) * pace(compute, upload, round_trip, window) + upload + round_trip
