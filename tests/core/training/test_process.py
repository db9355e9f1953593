# SPDX-License-Identifier: Apache-2.0
"""A process that trains: its threads, and the memory that it keeps between batches."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

BATCHES = """
import resource
import torch
from splitee.training.process import prepare_to_train

prepare_to_train(3)
assert torch.get_num_threads() == 3

def batch():
    [torch.ones(5 << 19) for _ in range(4)]  # 40 MB, all freed at the end

for _ in range(10):  # until malloc has found places for them
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is set")
def test_memory_of_a_batch_is_reused_by_the_next_batch() -> None:
    """Otherwise each batch takes a page fault for each of its pages: 10,000 for 40 MB."""
    found = subprocess.run([sys.executable, "-c", BATCHES], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000
