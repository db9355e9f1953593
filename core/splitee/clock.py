# SPDX-License-Identifier: Apache-2.0
"""The clock for deadlines and waits; it is injected, so that tests need not wait."""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds that only go forward, such as `time.monotonic`."""
