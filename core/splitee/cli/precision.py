# SPDX-License-Identifier: Apache-2.0
"""Whether the CPU supports bfloat16, so that `--precision bf16` is useful."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from splitee.errors import ConfigError

WantedPrecision = Literal["fp32", "bf16", "auto"]

CPUINFO = Path("/proc/cpuinfo")
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names the instructions on x86-64, and on ARM


def has_bf16() -> bool:
    """Whether this CPU has bfloat16 instructions; otherwise torch emulates them slowly."""
    try:
        lines = CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return False
    named = (line.partition(":") for line in lines)
    return any(key.strip() in ("flags", "Features") and BF16 & set(words.split()) for key, _, words in named)


def check_precision(wanted: WantedPrecision) -> None:
    """Raises ConfigError: this CPU does not support the precision."""
    if wanted == "bf16" and not has_bf16():
        raise ConfigError(
            f"--precision bf16: this CPU has no bfloat16 (none of {', '.join(sorted(BF16))} in {CPUINFO}): "
            "give --precision fp32"
        )
