# SPDX-License-Identifier: Apache-2.0
"""The figures of a run with synthetic devices, from the lines that its server records at each phase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def read_notes(path: Path) -> list[Line]:
    """The complete lines; none if the server has not opened a phase yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def figures(notes: list[Line], devices: int, state: Path) -> dict[str, Any]:
    """Over the rounds from the second to the last but one, from opening to opening.

    Times are milliseconds of CPU per batch, where evaluated batches count as well; `bare_ms` is the time per
    step of the bare torch loop in the same rounds, and `times_bare` is `server_ms` / `bare_ms`. `kb_a_device`
    is the growth of the server's memory, in KiB per device, from the built network to the peak, less the
    models, which have the size of a commit. It includes memory that torch allocates once, at the first batch,
    so it means little for few devices.
    """
    trained = [line for line in notes if line["phase"] == "train"]
    first, last = trained[1], trained[-1]
    rounds: int = last["round"] - first["round"]

    batches: int = last["batches"] - first["batches"]

    def per_batch(before: float, after: float) -> float:
        return round(1000 * (after - before) / batches, 3)

    by_section = {
        name: per_batch(first["sections"].get(name, 0.0), seconds)
        for name, seconds in sorted(last["sections"].items())
    }
    bare = 1000 * (last["bare_cpu"] - first["bare_cpu"]) / max(last["bare_steps"] - first["bare_steps"], 1)
    server = per_batch(first["cpu"], last["cpu"])
    broker = per_batch(first["broker_cpu"], last["broker_cpu"])
    commit = max((file.stat().st_size for file in state.glob("round-*.state")), default=0)
    peak = notes[-1]["peak"]
    written = None if last["written"] is None else last["written"] - first["written"]
    return {
        "batches_a_round": batches // rounds,
        "seconds_a_round": round((last["time"] - first["time"]) / rounds, 2),
        "server_ms": server,
        "bare_ms": round(bare, 3),
        "times_bare": round(server / bare, 2) if bare else None,
        "server_ms_by_section": {**by_section, "rest": round(server - sum(by_section.values()), 3)},
        "broker_ms": broker,
        "broker_share": round(broker / (broker + server), 3),
        "server_mb": round(notes[0]["rss"] / 1024, 1),
        "server_peak_mb": round(peak / 1024, 1),
        "kb_a_device": round((peak - notes[0]["rss"] - commit / 1024) / devices),
        "broker_mb": round(notes[-1]["broker_rss"] / 1024, 1),
        "commit_bytes": commit,
        "written_a_round": written and written // rounds,
        "dropped_events": notes[-1]["dropped"],
    }


def growth(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Compare with a run of more devices: ratio of CPU time per batch, and KiB per further device."""
    more = after["devices"] - before["devices"]
    models = after["commit_bytes"] - before["commit_bytes"]
    kilobytes = 1024 * (after["server_peak_mb"] - before["server_peak_mb"]) - models / 1024
    return {
        "server_ms": round(after["server_ms"] / before["server_ms"], 3),
        "kb_a_further_device": round(kilobytes / more, 1),
    }
