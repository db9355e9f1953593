# SPDX-License-Identifier: Apache-2.0
"""torch's compiler is not imported by a command that compiles nothing, and works where it is wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from splitee.cli.postponed_compiler import COMPARISONS, SHAPES, PostponingLoader

TESTS = Path(__file__).parents[2]
PATH = os.pathsep.join(str(TESTS / folder) for folder in ("support", "e2e"))
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
LOADED = "'torch._dynamo.symbolic_convert' in sys.modules"
SYMPY = "'sympy.core' in sys.modules"

TRAIN_AND_COMPILE = f"""
import sys
import splitee.cli.main
from fleets import in_one_process
in_one_process("averaging", "step", 1)
assert "torchvision" in sys.modules
import torch
network = torch.nn.Linear(3, 3)
optimizer = torch.optim.AdamW(network.parameters())
network(torch.ones(2, 3)).sum().backward()
optimizer.step()
optimizer.zero_grad()
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
torch.distributed.destroy_process_group()
assert not ({LOADED})
assert not ({SYMPY})
compiled = torch.compile(network, backend="eager", dynamic=True)
for batch in 2, 5:
    assert torch.equal(compiled(torch.ones(batch, 3)), network(torch.ones(batch, 3)))
assert {LOADED}
assert {SYMPY}
assert network.to("meta")(torch.empty(2, 3, device="meta")).shape == (2, 3)
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


@pytest.mark.slow(6)
def test_training_does_not_load_the_compiler_but_compiling_does() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_COMPILE],
        capture_output=True,
        text=True,
        timeout=120,
        env={**ONE_THREAD, "PYTHONPATH": PATH},
        check=False,
    )
    assert done.returncode == 0, done.stderr


NUMBERS = [
    *((name, (condition,)) for name in COMPARISONS for condition in (True, False) if name != "sym_eq"),
    *((name, (3,)) for name in ("guarding_hint_or_throw", "has_guarding_hint", "is_nested_int")),
    *((name, conditions) for name in ("sym_and", "sym_or") for conditions in ((True, False), (False, False))),
    *(("sym_eq", pair) for pair in ((2, 2), (2, 3), ((1, 2), [1, 2]), ((1, 2), (1, 3)), ((1,), ()))),
]


@pytest.mark.filterwarnings("ignore:guard_size_oblivious:FutureWarning")
@pytest.mark.parametrize(("name", "arguments"), NUMBERS)
def test_numbers_are_compared_as_by_torch(name: str, arguments: tuple[Any, ...]) -> None:
    expected = getattr(import_module(SHAPES), name)(*arguments)
    assert COMPARISONS[name](*arguments) == expected


class RealModule(Loader):
    """Stands for the compiler, which takes seconds to load: records the calls of `disable`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def exec_module(self, module: ModuleType) -> None:
        def disable(*arguments: Any, **named: Any) -> Callable[[Any], Any]:
            self.calls.append((arguments, named))
            return lambda function: function

        module.disable = disable  # type: ignore[attr-defined]


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> RealModule:
    """What a postponed `torch._dynamo` becomes, when it becomes real."""
    real = RealModule()
    spec = ModuleSpec("torch._dynamo", PostponingLoader(real))
    module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "torch._dynamo", module)
    monkeypatch.setattr(torch, "_dynamo", module, raising=False)
    return real


@pytest.mark.parametrize("owner", ["_dynamo", "compiler"])
def test_disable_of_a_function_alone_does_not_load_the_compiler(real: RealModule, owner: str) -> None:
    assert getattr(torch, owner).disable(len) is len
    assert real.calls == []


@pytest.mark.parametrize(
    ("owner", "arguments", "named"),
    [
        ("_dynamo", (), {}),
        ("_dynamo", (None, False), {}),
        ("_dynamo", (), {"reason": "it is slow"}),
        ("_dynamo", (), {"fn": len}),
        ("compiler", (), {}),
        ("compiler", (), {"recursive": False}),
        ("compiler", (), {"reason": "it is slow"}),
    ],
)
def test_other_forms_of_disable_are_passed_to_the_compiler(
    real: RealModule, owner: str, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    assert getattr(torch, owner).disable(*arguments, **named)(len) is len
    assert len(real.calls) == 1
    assert torch._dynamo.disable(recursive=False)(len) is len  # the module is real from now on
    assert real.calls[1] == ((), {"recursive": False})


@pytest.mark.slow(6)
def test_network_that_uses_compiler_functions_can_be_cut(tmp_path: Path) -> None:
    Path(tmp_path, "own_network.py").write_text(OWN_NETWORK)
    done = subprocess.run(
        [sys.executable, "-m", "splitee", "cuts", "own_network:Network", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**ONE_THREAD, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [cut["stage"] for cut in json.loads(done.stdout)["cuts"]] == ["convolution"]
