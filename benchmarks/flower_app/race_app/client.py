# SPDX-License-Identifier: Apache-2.0
"""A client: trains the whole network for one pass over its images, in a process that Flower starts."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from .job import Job
from .training import train_round

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Train one round from the server's weights on one thread; reports its wall and CPU seconds."""
    torch.set_num_threads(1)
    began, used_before = time.monotonic(), time.process_time()
    job = Job(Path(context.node_config["job"]))
    config = message.content["config"]
    network = job.network(message.content["arrays"].to_torch_state_dict())
    client, number = str(context.node_config["client"]), config["server-round"]
    metrics = {
        "num-examples": train_round(network, job, client, number, config.get("proximal-mu", 0.0)),
        "seconds": time.monotonic() - began,
        "cpu-seconds": time.process_time() - used_before,
    }
    content = {"arrays": ArrayRecord(network.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(content=RecordDict(content), reply_to=message)
