# SPDX-License-Identifier: Apache-2.0
"""The table of cuts as a terminal shows it."""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs
from profiles import measured
from rich.console import Console

from splitee_device.profiler.choice import choose
from splitee_device.profiler.cost_model import LinkSpeed, Work, predict
from splitee_device.profiler.report import cuts_table

SLOWER = 400.0


def test_table_fits_each_cut_of_a_slow_device_in_80_characters() -> None:
    found = measured([1, 4])
    slow = [
        structs.replace(one, step=SLOWER * one.step, spread=SLOWER * one.step) for one in found.costs.values()
    ]
    found = structs.replace(found, costs={one.cut: one for one in slow})
    work = Work(samples=20_000, steps=625, reserve=0, link=LinkSpeed(upload=1e4, round_trip=0.1))
    rows = [replace(row, stage="features.12") for row in predict(found, work)]
    console = Console(width=80)
    with console.capture() as shown:
        console.print(cuts_table(found, work, rows, choose(rows, "fastest", found, work)))
    lines = shown.get().splitlines()
    header = next(number for number, line in enumerate(lines) if "cut" in line.split())
    assert all("features.12" in line for line in lines[header + 1 : header + 1 + len(rows)])
    assert max(map(len, lines)) <= 80
    assert "e+" not in shown.get()
