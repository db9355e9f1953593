# SPDX-License-Identifier: Apache-2.0
"""The clock that deadlines and waits are told by: injected, so that tests need not wait."""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds that only go forward, such as `time.monotonic`."""
