# SPDX-License-Identifier: Apache-2.0
"""`splitee` as a rank that torchrun forks: after a signal to stop it exits at once, like one started by exec.

Otherwise torchrun's code in the process would wait 30 s for the other ranks, and then kill it.
"""

from __future__ import annotations

import os
import signal
import sys

from splitee.cli.main import main

signals_read, signals_written = os.pipe()
for descriptor in (signals_read, signals_written):
    os.set_blocking(descriptor, False)
signal.set_wakeup_fd(signals_written)
try:
    main()
except SystemExit as end:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        os.read(signals_read, 1)
    except BlockingIOError:  # no signal was received: main() has returned by itself
        raise end from None
    sys.stdout.flush()
    os._exit(end.code if isinstance(end.code, int) else 0)
