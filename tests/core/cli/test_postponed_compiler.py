"""torch's compiler is not imported by a command that compiles nothing, and works where it is wanted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
PATH = os.pathsep.join(str(TESTS / folder) for folder in ("support", "e2e"))
LOADED = "'torch._dynamo.symbolic_convert' in sys.modules"

TRAIN = f"""
import sys
import splitee.cli.main
from fleets import in_one_process
in_one_process("averaging", "step", 1)
assert "torchvision" in sys.modules
assert not ({LOADED})
"""

COMPILE = f"""
import sys
from splitee.cli.postponed_compiler import postpone_compiler
postpone_compiler()
import torch
import torchvision
network = torch.nn.Linear(3, 3)
optimizer = torch.optim.AdamW(network.parameters())
network(torch.ones(2, 3)).sum().backward()
optimizer.step()
optimizer.zero_grad()
assert not ({LOADED})
compiled = torch.compile(network, backend="eager")
assert torch.equal(compiled(torch.ones(2, 3)), network(torch.ones(2, 3)))
assert {LOADED}
"""


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": PATH},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_fleet_that_trains_does_not_load_it() -> None:
    run(TRAIN)


def test_it_is_there_for_who_compiles() -> None:
    run(COMPILE)
