# SPDX-License-Identifier: Apache-2.0
"""`splitee` as a rank that torchrun forks: told to stop, it ends at once, as one that was started by exec.

torchrun's own code would have it wait 30 s for the others to be done, and then kill it.
"""

from __future__ import annotations

import os
import signal
import sys

from splitee.cli.main import main

told, by_signals = os.pipe()
for descriptor in (told, by_signals):
    os.set_blocking(descriptor, False)
signal.set_wakeup_fd(by_signals)
try:
    main()
except SystemExit as end:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        os.read(told, 1)
    except BlockingIOError:  # nothing: it has come to its end
        raise end from None
    sys.stdout.flush()
    os._exit(end.code if isinstance(end.code, int) else 0)
