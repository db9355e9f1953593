# SPDX-License-Identifier: Apache-2.0
"""A server's report of a run, which a demo completes."""

from __future__ import annotations

from typing import Any


def server_report(*ids: str) -> dict[str, Any]:
    """The server's report, with devices at the cuts 3, 5, 3, ..."""
    return {
        "run": "r1",
        "strategy": "sequential",
        "order": "step",
        "seed": 1,
        "rounds": 3,
        "seconds": 75.0,
        "codec": "fp16",
        "threshold": 0.5,
        "weights_sha256": "ab" * 32,
        "batches_published": 1234,
        "batches_trained": 1234,
        "duplicates_dropped": 7,
        "bytes_published": 2_500_000,
        "rejected": 4,
        "devices": [
            {
                "id": device,
                "cut": 3 + 2 * (index % 2),
                "stage": f"layer{1 + index % 2}.1",
                "train_samples": 2000,
                "exit_accuracy": 0.61,
                "trunk_accuracy": 0.81,
                "adaptive_accuracy": 0.79,
                "offload_share": 0.25,
                "batches": 186,
                "bytes": 1_250_000,
            }
            for index, device in enumerate(ids)
        ],
    }
