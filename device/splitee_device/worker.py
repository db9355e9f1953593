"""`python -m splitee_device.worker`: the profiler's worker, which imports what a device's process imports."""

from __future__ import annotations

from importlib import import_module

from splitee.postponed_compiler import postpone_compiler

if __name__ == "__main__":
    postpone_compiler()
    import_module("splitee_device.measure").main()
