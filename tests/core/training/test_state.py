# SPDX-License-Identifier: Apache-2.0
"""A state on the disk: what a full disk leaves of it, and what the user is told."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.training.state import state_writer, unpack_state


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system writes at most `size` bytes to a file, as a disk does that fills up meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_keeps_the_state_before_and_is_reported_in_one_line(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    directory.save_round(1, state_writer({"weights": torch.ones(3)}))
    with (
        largest_file(3 << 20),
        pytest.raises(StateError, match=r"cannot write .*round-000001\.state: File too"),
    ):
        directory.save_round(1, state_writer({"weights": torch.zeros(2 << 20)}))
    kept = directory.load_round(1)
    assert kept is not None
    assert unpack_state(kept)["weights"].tolist() == [1, 1, 1]
    assert not list(tmp_path.glob(".*.new"))
    directory.close()
