# SPDX-License-Identifier: Apache-2.0
"""Postpones the import of torch's compiler, which saves 150 MB and a second per process.

torchvision's operators, torch's optimizers and its process groups ask or tell `torch._dynamo` something, also
where nothing is ever compiled. A command's process gets a module in its place that answers them as a process
without the compiler would, and that becomes the real one as soon as anything else is wanted of it.
Only `splitee.cli.main`, the beginning of every program, installs it: a program may decide so for its own
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
    """As `torch._dynamo.disable`: as long as nothing is compiled, a function is left as it is.

    Whoever wants a decorator (`disable()`, `disable(recursive=False)`) gets that of the real module.
    """
    module = sys.modules["torch._dynamo"]
    if isinstance(module, PostponedModule):
        if arguments and callable(arguments[0]):
            return arguments[0]
        become_real(module)
    return module.disable(*arguments, **named)


ANSWERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "torch._dynamo": {"disable": disable, "graph_break": lambda *_, **__: None},
    "torch._dynamo.trace_rules": {"clear_lru_cache": lambda: None},
    "torch._dynamo.utils": {"is_compile_supported": lambda _: False},
}
LOADING = threading.RLock()


def postpone_compiler() -> None:
    """Call it before torch is imported; a second call changes nothing."""
    if not any(isinstance(finder, PostponingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PostponingFinder())


class PostponingFinder(MetaPathFinder):
    """Finds the modules of `ANSWERS` where they are, and has them loaded later: before any other part."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in ANSWERS:
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = PostponingLoader(spec.loader)
            return spec
        parent = sys.modules.get(fullname.rpartition(".")[0])
        if not isinstance(parent, PostponedModule):
            return None
        become_real(parent)
        loaded = sys.modules.get(fullname)  # by its package
        return None if loaded is None else ModuleSpec(fullname, LoadedAlready(loaded))


class PostponingLoader(Loader):
    """Makes a module of the answers alone."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(ANSWERS[module.__name__])
        module.__class__ = PostponedModule

    def load(self, module: ModuleType) -> None:
        """Make the real one of it."""
        module.__class__ = ModuleType
        self.real.exec_module(module)


class LoadedAlready(Loader):
    """Gives back the module that is there."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class PostponedModule(ModuleType):
    """Becomes the real module when an attribute is wanted that it has no answer for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if (module := f"{self.__name__}.{name}") in ANSWERS:
            return import_module(module)
        become_real(self)
        return getattr(self, name)


def become_real(module: ModuleType) -> None:
    """Load what was postponed, its package first, as the import system does."""
    with LOADING:
        package = sys.modules.get(module.__name__.rpartition(".")[0])
        if isinstance(package, PostponedModule):
            become_real(package)
        loader = module.__spec__.loader if module.__spec__ else None
        if isinstance(module, PostponedModule) and isinstance(loader, PostponingLoader):
            loader.load(module)
