# SPDX-License-Identifier: Apache-2.0
"""A user who is not root, because root may enter and write everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

NOBODY = 65534  # user id


@contextmanager
def not_as_root() -> Iterator[None]:
    """If root runs the test, the context runs as another user."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
