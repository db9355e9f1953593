# SPDX-License-Identifier: Apache-2.0
"""bfloat16 is detected from /proc/cpuinfo, and refused in one line where the CPU lacks it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from splitee.cli import precision
from splitee.cli.main import splitee
from splitee.cli.precision import check_precision, has_bf16
from splitee.errors import ConfigError

X86 = "processor\t: 0\nmodel name\t: bf16 in name only\nflags\t\t: fpu avx512f {}sse4_2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}i8mm\nCPU part\t: 0xd4f\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a `/proc/cpuinfo` that is not written yet."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "CPUINFO", path)
    return path


@pytest.mark.parametrize(("words", "name"), [(X86, "avx512_bf16"), (X86, "amx_bf16"), (ARM, "bf16")])
def test_bf16_is_detected_from_cpu_flags_and_refused_without_them(
    words: str, name: str, cpuinfo: Path
) -> None:
    assert not has_bf16()
    cpuinfo.write_text(words.format(""))
    assert not has_bf16()
    with pytest.raises(ConfigError, match=f"^--precision bf16: .*{name}.* give --precision fp32$"):
        check_precision("bf16")
    check_precision("auto")
    check_precision("fp32")
    cpuinfo.write_text(words.format(f"{name} "))
    assert has_bf16()
    check_precision("bf16")


@pytest.mark.parametrize(
    "arguments",
    [
        ("server", "--state", "{}"),
        ("device", "--id", "pi-1", "--data", "builtin:fashion-mnist", "--state", "{}"),
        ("profile", "--network", "tiny_networks:tiny", "--state", "{}"),
    ],
)
def test_commands_refuse_bf16_before_any_state_is_written(
    arguments: tuple[str, ...], cpuinfo: Path, tmp_path: Path
) -> None:
    cpuinfo.write_text(X86.format(""))
    state = tmp_path / "state"
    given = [argument.format(state) for argument in arguments]
    result = CliRunner().invoke(splitee, [*given, "--precision", "bf16"], standalone_mode=False)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("--precision bf16: this CPU has no bfloat16")
    assert not state.exists()
