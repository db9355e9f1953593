# SPDX-License-Identifier: Apache-2.0
"""A page that a thread of the test's process serves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Queue

from aiohttp import web

from splitee_web.listening import ListenOptions
from splitee_web.site import serve


@contextmanager
def served(app: web.Application, where: ListenOptions) -> Iterator[str]:
    """Serve a page; yields its URL. An exception of `serve` is raised at the end."""
    stop, urls = threading.Event(), Queue[str]()
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, app, where, stop, urls.put)
        serving.add_done_callback(lambda _: urls.put(""))
        try:
            url = urls.get(timeout=30)
            if url:
                yield url
        finally:
            stop.set()
        serving.result()
        assert url, "it ended before it served"
