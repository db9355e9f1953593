"""A client: one pass over its images with the whole network, in the batches and at the rates of the job."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from .job import Job

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Trains one round from the server's weights; momentum starts anew, as every round has a process."""
    torch.set_num_threads(1)
    began, used_before = time.monotonic(), time.process_time()
    job = Job(Path(context.node_config["job"]))
    config = message.content["config"]
    network = job.network(message.content["arrays"].to_torch_state_dict())
    client, number = str(context.node_config["client"]), config["server-round"]
    samples = train_round(network, job, client, number, config.get("proximal-mu", 0.0))
    metrics = {
        "num-examples": samples,
        "seconds": time.monotonic() - began,
        "cpu-seconds": time.process_time() - used_before,
    }
    content = {"arrays": ArrayRecord(network.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(content=RecordDict(content), reply_to=message)


def train_round(network: nn.Module, job: Job, client: str, number: int, proximal_mu: float) -> int:
    """Trains round `number` (from 1) in place; returns how many samples that were."""
    settings = job.settings
    data = job.arrays(client)
    images, labels = data["images"], torch.from_numpy(data["labels"])
    anchors = [parameter.detach().clone() for parameter in network.parameters()] if proximal_mu else []
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=0.0,
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
        nesterov=True,
    )
    network.train()
    samples = 0
    for batch, rate in zip(data["batches"][number - 1], data["rates"][number - 1], strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        loss = F.cross_entropy(network(job.normalize(images[batch])), labels[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        pull_back(network, anchors, proximal_mu)
        optimizer.step()
        samples += len(batch)
    return samples


def pull_back(network: nn.Module, anchors: list[Tensor], proximal_mu: float) -> None:
    """Adds the gradient of FedProx's mu / 2 * |w - w_t|^2 (Li et al. 2018); `anchors`: w_t, or nothing."""
    for parameter, anchor in zip(network.parameters(), anchors, strict=bool(anchors)):
        assert parameter.grad is not None
        parameter.grad.add_(parameter.detach() - anchor, alpha=proximal_mu)
