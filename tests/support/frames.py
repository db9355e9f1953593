# SPDX-License-Identifier: Apache-2.0
"""Measures how smoothly a page is drawn, by Chromium's tracing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Page

CATEGORIES = "toplevel,devtools.timeline,disabled-by-default-devtools.timeline.frame"


@dataclass
class Trace:
    """The result of tracing a page.

    Attributes:
        longest: CPU milliseconds of the main thread's longest task in each second: unlike late frames, they
            do not depend on other load of the machine.
        drawn: number of drawn frames.
        dropped: number of dropped frames.
    """

    longest: list[float] = field(default_factory=list)
    drawn: int = 0
    dropped: int = 0


@contextmanager
def traced(page: Page) -> Iterator[Trace]:
    """Trace a page; the trace is complete when the context is left."""
    trace, events, ended = Trace(), list[dict[str, Any]](), list[Any]()
    session = page.context.new_cdp_session(page)
    session.on("Tracing.dataCollected", _collector(events))
    session.on("Tracing.tracingComplete", lambda data: ended.append(data))  # noqa: PLW0108 -- it takes no method
    session.send("Tracing.start", {"transferMode": "ReportEvents", "categories": CATEGORIES})
    yield trace
    session.send("Tracing.end")
    while not ended:
        page.wait_for_timeout(50)
    trace.longest = _longest(events)
    trace.drawn = sum(one["name"] == "DrawFrame" for one in events)
    trace.dropped = sum(one["name"] == "DroppedFrame" for one in events)


def _collector(events: list[dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    return lambda data: events.extend(data["value"])


def _longest(events: list[dict[str, Any]]) -> list[float]:
    """Longest tasks by second, of the main thread that ran scripts: the page's, not a spare process's."""
    named = {_thread(one) for one in events if one["args"].get("name") == "CrRendererMain"}
    [main] = named & {_thread(one) for one in events if one["name"] == "FunctionCall"}
    tasks = [
        one for one in events if one["name"].endswith("RunTask") and _thread(one) == main and "dur" in one
    ]
    first, last = min(one["ts"] for one in tasks), max(one["ts"] for one in tasks)
    longest = [0.0] * (1 + int((last - first) / 1e6))
    for one in tasks:
        second = int((one["ts"] - first) / 1e6)
        longest[second] = max(longest[second], one.get("tdur", 0) / 1e3)
    return longest


def _thread(event: dict[str, Any]) -> tuple[int, int]:
    return event["pid"], event["tid"]
