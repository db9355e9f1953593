# SPDX-License-Identifier: Apache-2.0
"""Writes docs/reference/report.md: the fields of report.json, as the server and the demo write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.inspect import FloatType, IntType, ListType, StrType, StructType, type_info
from msgspec.structs import asdict, replace
from protocol_page import described, meaning, table

from splitee.protocol.accuracies import Accuracies, ClassRecall, ReleasedThreshold
from splitee.protocol.fleet import DeviceMetrics, FleetMetrics, Metrics
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_lab.report.demo_report import BaselineResult, DeviceChoice, Report
from splitee_lab.report.inference_table import DeviceInference, Predictions
from splitee_server.members.members import Member
from splitee_server.members.traffic import FleetTraffic
from splitee_server.rounds.report import run_report

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "report.md"
HEAD = """# report.json

Made by `make docs` from the code that writes it. The server writes `report.json` into its `--state` when a
run ends; the demo writes its own beside `report.html`, with more fields. Shares and accuracies are fractions
from 0 to 1, times are in seconds. Unknown values are null. Later versions may add fields; ignore fields that
you do not know.
"""
HERE = {  # meanings of fields that no docstring describes
    "seconds": "duration of the run in seconds",
    "weights_sha256": "digest of the committed weights of all networks; equal digests mean equal weights",
    "batches_published": "batches that the devices have sent, including those sent twice",
    "batches_trained": "batches that the trunk has trained on, over all committed rounds",
    "duplicates_dropped": "batches that arrived twice and were dropped",
    "bytes_published": "bytes of all payloads that the devices have sent",
    "traffic": "bytes `up` from devices and `down` to them (and `to_all`, each message once), "
    "[by purpose](metrics.md#bytes-by-purpose)",
    "rejected": "rejected messages",
    "evaluated_round": "round in which its accuracies were measured",
    "dismissed": "ids of the devices that were dismissed",
    "fleet": "accuracies over all held-out images, [below](#fleet-and-best)",
    "best": "accuracies of the best round, with its number `round`; null: no image was held out",
    "devices": "list of the devices, [below](#devices)",
    "round": "number of the best round",
    "id": "the device's id",
    "data": "data on which the devices were trained",
    "broker": "kind of the demo's broker",
    "baselines": "baselines of the fleet; null with `--no-baselines`",
    "centralized_accuracy": "accuracy of the whole network, trained on all images in one place",
    "alone_accuracy": "by device: accuracy of the whole network, trained on the device's own images",
    "alone_exit_accuracy": "by device: accuracy of its own stages and exit, trained on its own images",
    "inference": "results of the released models on held-out images, by device",
    "choices": "with `--profile`, the cuts that the profiler chose, by device",
    "compute_share": "by device: multiply-accumulates of its training, as a share of the whole network's",
    "cpu": "cores that the device may use",
    "memory": "MiB of memory that it may use for training",
    "reason": "reason for this cut",
    "images": "number of held-out images that were predicted",
    "local": "predictions by the exit alone",
    "adaptive": "predictions by the exit up to the threshold, and by the trunk above it",
    "offload": "predictions by the trunk alone",
    "accuracy": "share of correct predictions",
    "median_ms": "median time per image, in milliseconds",
    "p95_ms": "95th percentile of the time per image, in milliseconds",
    "bytes": "bytes sent per image",
    "trunk_accuracy": "accuracy of the trunk alone in the evaluation of the released round; null: unknown",
    "peak_memory": "by device: largest number of bytes that its process has allocated",
    "history": "evaluated rounds in order, with the figures of each device",
    "classes": "predictions of the released models, class by class; null: there are none",
    "client_averaging": "client averaging of the run",
    "ended": "time at which the run ended, in ISO 8601 with the time zone",
    "machine": "machine that it ran on",
    "version": "version of splitee",
}
RUN = {  # meanings that replace RunSpec's help, which is about setting a field
    "stem": "`imagenet`, or `small`: the resnets' 32-pixel variant",
    "rounds": "number of committed and evaluated rounds",
    "codec": "codec of the features on the wire; `auto`: each device chooses by its CPU and link",
}
FIGURE = 0.5
KINDS = {bool: "true or false", int: "integer", float: "number", str: "text", list: "array", tuple: "array"}


def page() -> str:
    """The page's text. Raises KeyError: a field has no meaning here or in a docstring."""
    report = sample()
    device = report["devices"][0]
    of_device = documented(DeviceMetrics) | released(ReleasedThreshold) | intervals()
    of_fleet = documented(FleetMetrics) | intervals()
    added = [name for name in Report.__struct_fields__ if name not in report]
    sections = [
        ("The run", rows(written(report), documented(RunSpec) | RUN)),
        ("fleet and best", rows(written(report["best"]), of_fleet)),
        ("devices", rows(written(device), of_device)),
        ("weakest_class", rows(written(device["weakest_class"]), documented(ClassRecall))),
        ("What the demo adds", rows({name: declared(Report)[name] for name in added}, {})),
        ("baselines", rows(declared(BaselineResult), {})),
        ("inference", rows(declared(DeviceInference), of_device)),
        ("local, adaptive, offload", rows(declared(Predictions), documented(Accuracies))),
        ("choices", rows(declared(DeviceChoice), of_device)),
    ]
    head = ("field", "type", "meaning")
    return HEAD + "".join(f"\n## {name}\n\n{table(head, found)}" for name, found in sections)


def sample() -> dict[str, Any]:
    """A report with one device and no null values."""
    weakest = ClassRecall(name="bees", images=1, recall=FIGURE)
    accuracies = Accuracies(
        exit_accuracy=FIGURE, trunk_accuracy=FIGURE, adaptive_accuracy=FIGURE, offload_share=FIGURE
    )
    fleet = replace(FleetMetrics(images=1, weakest_class=weakest), **asdict(accuracies))
    device = DeviceMetrics(cut=1, stage="layer1", train_samples=1, held_out_samples=1, alone_accuracy=FIGURE)
    threshold = ReleasedThreshold(
        threshold=FIGURE, images=1, expected_offload=FIGURE, expected_accuracy=FIGURE
    )
    device = replace(device, weakest_class=weakest, released=threshold, **asdict(accuracies))
    spec = RunSpec(protocol=1, run="run", network="resnet18", num_classes=2, rounds=1)
    metrics = Metrics(
        run="run",
        round=1,
        rounds=1,
        seconds=1.0,
        devices={"pi-1": device},
        batches_trained=1,
        duplicates_dropped=0,
        fleet=fleet,
    )
    member = Member(device="pi-1", cut=1, train_samples=1, held_out_samples=1, instance=0)
    return run_report(spec, metrics, metrics, [member], [], "", 0, FleetTraffic(Topics("fleet"), "run"))


def written(values: Mapping[str, Any]) -> dict[str, str]:
    """The types of a report's fields, by name."""
    return {name: KINDS.get(type(value), "object") for name, value in values.items()}


def declared(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The types of a struct's fields, by name."""
    info = type_info(struct)
    assert isinstance(info, StructType)
    kinds = {IntType: "integer", FloatType: "number", StrType: "text", ListType: "array"}
    return {field.name: kinds.get(type(field.type), "object") for field in info.fields}


def rows(fields: Mapping[str, str], meanings: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """One row per field; its meaning is in `meanings`, else in HERE."""
    found = []
    for name, kind in fields.items():
        text = meanings[name] if name in meanings else HERE[name]
        found.append((f"`{name}`", kind, text[0].upper() + text[1:].rstrip(".")))
    return found


def documented(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Meanings of a struct's fields, by name."""
    info = type_info(struct)
    assert isinstance(info, StructType)
    meanings = described(struct)[1]
    return {field.name: meaning(field, meanings) for field in info.fields}


def released(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The same for a released threshold, whose `images` are `threshold_images` in a report."""
    found = documented(struct)
    return found | {"threshold_images": found.pop("images")}


def intervals() -> dict[str, str]:
    """Meanings of the intervals of the accuracies, by name."""
    return {
        f"{of}_interval": f"95 % interval of `{of}_accuracy`: its lower and its upper end"
        for of in ("exit", "trunk", "adaptive")
    }
