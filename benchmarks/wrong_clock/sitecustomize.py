# SPDX-License-Identifier: Apache-2.0
"""Shifts this process's clock: Python imports this file at start-up if its folder is on PYTHONPATH.

The file named by the variable CLOCK_FILE holds the offset in seconds.
"""

import os
import time
from pathlib import Path

_time, _time_ns = time.time, time.time_ns


def _offset() -> float:
    try:
        return float(Path(os.environ["CLOCK_FILE"]).read_text())
    except (KeyError, OSError, ValueError):
        return 0.0


time.time = lambda: _time() + _offset()
time.time_ns = lambda: _time_ns() + int(_offset() * 1e9)
