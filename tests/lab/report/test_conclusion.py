# SPDX-License-Identifier: Apache-2.0
"""What a demo's conclusion says, in good cases and in bad ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from demo_reports import server_report

from splitee_lab.report.conclusion import conclusion
from splitee_lab.report.demo_report import Report

Shares = Sequence[float | None]


def report(
    adaptive: Shares,
    alone: Sequence[float] | None = None,
    exits: Shares | None = None,
    alone_exit: Sequence[float] = (),
    trunk: Shares | None = None,
    centralized: float = 0.871,
    **fields: Any,
) -> Report:
    """A report of devices pi-1, pi-2, ... with these accuracies."""
    ids = [f"pi-{number}" for number in range(1, len(adaptive) + 1)]
    found: dict[str, Any] = server_report(*ids)
    found |= {"network": "resnet18", "data": "builtin:x", "broker": "embedded", **fields}
    for index, device in enumerate(found["devices"]):
        device |= {"adaptive_accuracy": adaptive[index], "bytes": 11_400_000 + 1_000_000 * index}
        device["exit_accuracy"] = exits[index] if exits else None
        device["trunk_accuracy"] = trunk[index] if trunk else None
        device["offload_share"] = None if adaptive[index] is None else 0.071
    if alone is not None:
        found["baselines"] = {
            "centralized_accuracy": centralized,
            "alone_accuracy": dict(zip(ids, alone, strict=True)),
            "alone_exit_accuracy": dict(zip(ids, alone_exit, strict=False)),
        }
    return msgspec.convert(found, Report)


SHARES: Mapping[str, float] = {"pi-1": 0.3338, "pi-2": 0.5704, "pi-3": 0.807}


def test_conclusion_states_gains_with_their_costs() -> None:
    found = report(
        [0.842, 0.844, 0.846],
        [0.819, 0.819, 0.821],
        [0.83, 0.84, 0.843],
        [0.8, 0.81, 0.84],
        [0.85, 0.85, 0.85],
        compute_share=SHARES,
    )
    assert conclusion(found) == (
        "By joining, every device gains 2.3 to 2.5 points over training the whole network alone "
        "(adaptive 84.4 against 82.0 %, with 7.1 % of images offloaded), "
        "for 33 to 81 % of that compute and 11.4 to 13.4 MB sent. "
        "Adaptively, every device gains 0.6 to 4.2 points over the same stages and exit trained alone "
        "(84.4 against 81.7 %); by the exit, without the server, every device gains 0.3 to 3.0 points "
        "(83.8 %). "
        "The trunk is 2.1 points under centralized training (85.0 against 87.1 %) and 2.9 to 3.1 points "
        "above the whole network alone (82.0 %)."
    )


@pytest.mark.parametrize(
    ("adaptive", "said"),
    [
        ([0.83, 0.816, 0.85], "pi-1 and pi-3 gain 1.0 to 3.0 points over ALONE, but pi-2 loses 0.4 points"),
        ([0.82, 0.816, 0.8], "pi-2 and pi-3 lose 0.4 to 2.0 points against ALONE, but pi-1 stays level"),
        (
            [0.83, 0.816, 0.82],
            "pi-1 gains 1.0 points over ALONE, but pi-2 loses 0.4 points and pi-3 stays level",
        ),
        ([0.81, 0.8, 0.8], "every device loses 1.0 to 2.0 points against ALONE"),
        ([0.82, 0.8203, 0.8197], "every device stays level with ALONE"),
        ([0.83], "pi-1 gains 1.0 points over ALONE"),
        ([0.81], "pi-1 loses 1.0 points against ALONE"),
        (
            [0.83] * 7 + [0.81] * 5,
            "7 of 12 devices gain 1.0 points over ALONE, but 5 of 12 devices lose 1.0 points",
        ),
    ],
)
def test_conclusion_states_losses_as_well_as_gains(adaptive: list[float], said: str) -> None:
    shown = conclusion(report(adaptive, [0.82] * len(adaptive)))
    assert shown.startswith(f"By joining, {said.replace('ALONE', 'training the whole network alone')} (")


def test_conclusion_states_an_exit_that_is_worse_than_alone() -> None:
    shown = conclusion(report([0.84, 0.79], [0.78, 0.78], [0.83, 0.79], [0.8, 0.8]))
    assert (
        "pi-1 gains 4.0 points over the same stages and exit trained alone, but pi-2 loses 1.0 points "
        "(81.5 against 80.0 %); by the exit, without the server, pi-1 gains 3.0 points, but pi-2 loses "
        "1.0 points (81.0 %)." in shown
    )


@pytest.mark.parametrize(
    ("trunk", "said"),
    [
        ([0.871, 0.871], "The trunk is level with centralized training (87.1 against 87.1 %) and"),
        ([0.881, 0.881], "The trunk is 1.0 points above centralized training (88.1 against 87.1 %) and"),
        ([0.85, 0.84], "By device, the trunk is 2.1 to 3.1 points under centralized training"),
        ([0.861, 0.881], "By device, the trunk is 1.0 points under to 1.0 points above centralized training"),
    ],
)
def test_conclusion_compares_trunks_with_centralized_training(trunk: list[float], said: str) -> None:
    shown = conclusion(report([0.84, 0.84], [0.82, 0.82], trunk=trunk, strategy="averaging"))
    assert f" {said}" in shown


def test_conclusion_without_baselines_states_that_the_gain_is_unknown() -> None:
    shown = conclusion(report([0.842, 0.846], exits=[0.83, 0.84], trunk=[0.85, 0.85], compute_share=SHARES))
    assert shown == (
        "What joining gains is not known, because no baselines were trained. On average the devices reach "
        "adaptive 84.4 %, exit 83.5 %, trunk 85.0 %, for 33 to 81 % of the compute of training the whole "
        "network and 11.4 to 12.4 MB sent."
    )


def test_conclusion_names_devices_that_were_not_evaluated() -> None:
    shown = conclusion(report([0.84, None], [0.82, 0.82]))
    assert shown.startswith("By joining, pi-1 gains 2.0 points over")
    assert shown.endswith("pi-2 was not evaluated.")
    assert conclusion(report([None, None], [0.82, 0.82])) == (
        "No device was evaluated, so what joining gains is not known."
    )


def test_conclusion_states_memory_limits_and_the_margin_of_error() -> None:
    choices = [
        {"id": f"pi-{number}", "cpu": 0.5, "memory": 512 * number, "cut": 3, "reason": "it fits"}
        for number in (1, 2)
    ]
    found = report([0.84, 0.84], [0.82, 0.82], choices=choices)
    assert "% of images offloaded), for 11.4 to 12.4 MB sent." in conclusion(found)
    peaks = {"pi-1": 400 << 20, "pi-2": 900 << 20}
    assert (
        ", for 400 to 900 MiB of memory of 512 to 1,024 MiB allowed and 11.4 to 12.4 MB sent."
        in conclusion(msgspec.structs.replace(found, peak_memory=peaks))
    )
    raw = msgspec.to_builtins(found)
    for device in raw["devices"]:
        device["held_out_samples"] = 1000
    assert conclusion(msgspec.convert(raw, Report)).endswith(
        " Each accuracy rests on 1,000 images held out, in one run: ± 2.3 points (95 %)."
    )
