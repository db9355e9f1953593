# SPDX-License-Identifier: Apache-2.0
"""The server: runs Flower's own strategies, and writes a JSON line per round with its evaluation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedProx

from .job import Job
from .training import accuracy

Note = Callable[[list[RecordDict], str], MetricRecord]

TICK = 0.1  # seconds between two checks of the connected clients

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run all rounds; `time` in a line of `results` is when its network was aggregated."""
    settings = context.run_config
    job = Job(Path(settings["job"]))
    clients = job.settings["clients"]
    held_out = job.arrays("held-out")
    reports: list[list[dict[str, float]]] = []

    def note(replies: list[RecordDict], _weighted_by: str) -> MetricRecord:
        reports.append([dict(reply["metrics"]) for reply in replies])
        return MetricRecord()

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number == 0:
            return None
        aggregated_at = time.time()
        if len(reports) != number or len(reports[-1]) != clients:
            raise RuntimeError(
                f"round {number}: of {clients} clients one has failed: {reports[number - 1 :]}"
            )
        share_correct = accuracy(job, job.network(arrays.to_torch_state_dict()), held_out)
        line = {
            "round": number,
            "opened": opened,
            "time": aggregated_at,
            "accuracy": share_correct,
            "weights_bytes": arrays.count_bytes(),
            "clients": reports[-1],
        }
        with Path(settings["results"]).open("a") as file:
            file.write(json.dumps(line) + "\n")
        return MetricRecord({"accuracy": share_correct})

    initial = {name: torch.from_numpy(array) for name, array in job.arrays("initial").items()}
    while len(list(grid.get_node_ids())) < clients:
        time.sleep(TICK)
    opened = time.time()
    make_strategy(settings, clients, note).start(
        grid,
        ArrayRecord(initial),
        num_rounds=job.settings["rounds"],
        timeout=settings["limit"],
        evaluate_fn=evaluate,
    )


def make_strategy(settings: Mapping[str, Any], clients: int, note: Note) -> FedAvg:
    """All clients train in every round, and none evaluates; `note` receives their metrics."""
    options: dict[str, Any] = {
        "fraction_evaluate": 0.0,
        "min_train_nodes": clients,
        "min_available_nodes": clients,
        "train_metrics_aggr_fn": note,
    }
    if settings["strategy"] == "fedprox":
        return FedProx(proximal_mu=settings["proximal-mu"], **options)
    return FedAvg(**options)
