# SPDX-License-Identifier: Apache-2.0
"""The page of a demo's fleet: a process of its own, which may outlive the others."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from splitee_lab.local.brokers import HOST, free_port
from splitee_lab.local.processes import Children

PORT = 8080  # if it is free
POLL = 0.05  # seconds


@contextmanager
def serve_page(logs: Path, settings: Mapping[str, str]) -> Iterator[str]:
    """The URL of a page that is served until the context is left.

    Args:
        settings: SPLITEE_* variables that name broker and fleet.

    Raises:
        ChildFailed: it is not served; its log says why.
    """
    port = PORT if _is_free(PORT) else free_port()
    with Children(logs, settings) as children:
        children.start("page", ["page", "--listen", f"{HOST}:{port}"])
        while _is_free(port):
            children.check()
            time.sleep(POLL)
        yield f"http://{HOST}:{port}/"


def _is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0
