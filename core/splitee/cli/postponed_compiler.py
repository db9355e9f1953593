# SPDX-License-Identifier: Apache-2.0
"""Postpones the import of torch's compiler and of sympy: half of the CPU time in which a process starts.

torchvision's operators, torch's optimizers and its process groups call `torch._dynamo` even if nothing is
ever compiled, and operations on the meta device compare sizes as if they might be symbols. A command's
process gets modules in their place that behave as in a process without compiler and symbols. Each becomes the
real module as soon as anything else is needed from it; if that never happens, 180 MB are saved. Only
`splitee.cli.main`, the beginning of every program, installs them: a program may decide this for its own
process, a library may not.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def disable(*arguments: Any, **named: Any) -> Any:
    """As `torch._dynamo.disable`: while nothing is compiled, a function is left as it is.

    A decorator (`disable()`, `disable(recursive=False)`) comes from the real module.
    """
    module = sys.modules["torch._dynamo"]
    if isinstance(module, PostponedModule):
        if arguments and callable(arguments[0]):
            return arguments[0]
        load_real_module(module)
    return module.disable(*arguments, **named)


def compares(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """As the function `name` of torch's symbolic shapes, which for plain numbers is `plain`."""

    def compare(*arguments: Any, **named: Any) -> Any:
        module = sys.modules[SHAPES]
        if isinstance(module, PostponedModule):
            if all(map(is_plain, arguments)):
                return plain(*arguments)
            load_real_module(module)
        return getattr(module, name)(*arguments, **named)

    return compare


def is_plain(value: Any) -> bool:
    """Whether it is a number, or a sequence of numbers."""
    if isinstance(value, tuple | list):
        return all(type(one) in NUMBERS for one in value)
    return type(value) in NUMBERS


def same(value: Any) -> Any:
    return value


class NoSymbol:
    """Stands for the class of sympy's symbols while there are none."""


NUMBERS = bool, int, float
SHAPES = "torch.fx.experimental.symbolic_shapes"
COMPARISONS: Mapping[str, Callable[..., Any]] = {
    "expect_true": same,
    "guard_or_false": same,
    "guard_or_true": same,
    "guard_size_oblivious": same,
    "guarding_hint_or_throw": same,
    "has_guarding_hint": lambda _: True,
    "is_nested_int": lambda _: False,
    "statically_known_true": same,
    "sym_and": lambda *conditions: all(conditions),
    "sym_eq": lambda one, other: list(one) == list(other) if isinstance(one, tuple | list) else one == other,
    "sym_or": lambda *conditions: any(conditions),
}
STUBS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "sympy": {"Basic": NoSymbol},
    "torch._dynamo": {"disable": disable, "graph_break": lambda *_, **__: None},
    "torch._dynamo.trace_rules": {"clear_lru_cache": lambda: None},
    "torch._dynamo.utils": {"is_compile_supported": lambda _: False},
    SHAPES: {name: compares(name, plain) for name, plain in COMPARISONS.items()},
}
LOADING = threading.RLock()


def postpone_compiler() -> None:
    """Call it before torch is imported; a second call changes nothing."""
    if not any(isinstance(finder, PostponingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PostponingFinder())


class PostponingFinder(MetaPathFinder):
    """Finds the modules of `STUBS`, and postpones loading them until any other part of them is needed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in STUBS:
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = PostponingLoader(spec.loader)
            return spec
        parent = sys.modules.get(fullname.rpartition(".")[0])
        if not isinstance(parent, PostponedModule):
            return None
        load_real_module(parent)
        loaded = sys.modules.get(fullname)  # by its package
        return None if loaded is None else ModuleSpec(fullname, LoadedAlready(loaded))


class PostponingLoader(Loader):
    """Makes a module that has only the attributes in `STUBS`."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(STUBS[module.__name__])
        module.__class__ = PostponedModule

    def load(self, module: ModuleType) -> None:
        """Turn it into the real module."""
        module.__class__ = ModuleType
        self.real.exec_module(module)


class LoadedAlready(Loader):
    """Returns the module that is already loaded."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class PostponedModule(ModuleType):
    """Becomes the real module when an attribute is needed that is not in `STUBS`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if (module := f"{self.__name__}.{name}") in STUBS:
            return import_module(module)
        load_real_module(self)
        return getattr(self, name)


def load_real_module(module: ModuleType) -> None:
    """Load a postponed module, after its package, as the import system does."""
    with LOADING:
        package = sys.modules.get(module.__name__.rpartition(".")[0])
        if isinstance(package, PostponedModule):
            load_real_module(package)
        loader = module.__spec__.loader if module.__spec__ else None
        if isinstance(module, PostponedModule) and isinstance(loader, PostponingLoader):
            loader.load(module)
