"""torch's compiler is not imported by a command that compiles nothing, and works where it is wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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

DECORATE = f"""
import sys
import splitee.cli.main
import torch
import torchvision
from torch._dynamo import disable
class Network(torch.nn.Module):
    @%s
    def forward(self, x):
        return x + 1
assert torch.equal(Network()(torch.ones(2)), torch.full((2,), 2.0))
assert ({LOADED}) is %s
assert disable(fn=len)("abc") == 3
assert disable(recursive=False)(len)("abc") == 3
assert {LOADED}
"""

OWN_NETWORK = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, num_classes)

    @torch.compiler.disable(recursive=False)
    def pool(self, x):
        return x.mean((2, 3))

    @torch._dynamo.disable()
    def forward(self, x):
        if torch.compiler.is_compiling():
            x = x + torch._dynamo.config.recompile_limit
        torch._dynamo.graph_break()
        return self.linear(self.pool(self.convolution(x)))
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


@pytest.mark.parametrize("name", ["torch._dynamo.disable", "torch.compiler.disable"])
def test_a_function_alone_is_left_as_it_is(name: str) -> None:
    run(DECORATE % (name, False))


@pytest.mark.parametrize(
    "form",
    [
        "torch._dynamo.disable()",
        "torch._dynamo.disable(None, False)",
        "torch._dynamo.disable(reason='it is slow')",
        "torch.compiler.disable()",
        "torch.compiler.disable(recursive=False)",
        "torch.compiler.disable(reason='it is slow')",
    ],
)
def test_every_other_form_of_disable_is_the_compilers_own(form: str) -> None:
    run(DECORATE % (form, True))


def test_a_network_that_speaks_to_the_compiler_can_be_cut(tmp_path: Path) -> None:
    Path(tmp_path, "own_network.py").write_text(OWN_NETWORK)
    done = subprocess.run(
        [sys.executable, "-m", "splitee", "cuts", "own_network:Network", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [cut["stage"] for cut in json.loads(done.stdout)["cuts"]] == ["convolution"]
