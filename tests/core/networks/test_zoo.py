# SPDX-License-Identifier: Apache-2.0
"""An error in a user's own network is reported in one line, with its place in the user's code."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call

from splitee.errors import ExitCode, NetworkError, Terminated
from splitee.networks.zoo import make

HEAD = "import sys\nimport torch\n"
MISTAKES = {
    "division": ("1 / 0", "ZeroDivisionError: division by zero", 3),
    "syntax": ("def factory(:", "SyntaxError: invalid syntax", 3),
    "indentation": ("if True:\nfactory = 1", "IndentationError: expected an indented block after 'if'", 4),
    "leaves": ("sys.exit('enough')", "SystemExit: enough", 3),
    "attribute": ("torch.no_such_thing", "AttributeError: module 'torch' has no attribute", 3),
    "missing": ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'", 3),
    "in_torch": ("torch.nn.Linear(2, 'three')", "TypeError: empty()", 3),
    "of_its_own": ("class Mine(BaseException): ...\nraise Mine('why')", "Mine: why", 4),
    "in_helper": ("import helper_of_own", "KeyError: 'cut'", None),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def refusal(name: str) -> str:
    with pytest.raises(NetworkError) as refused:
        make(name, num_classes=10, input_shape=(3, 8, 8), stem="imagenet", seed=0, device="meta")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kind", MISTAKES)
def test_module_that_fails_on_import_is_reported_with_its_line(folder: Path, kind: str) -> None:
    code, reason, line = MISTAKES[kind]
    module = f"import_{kind}"
    Path(folder, f"{module}.py").write_text(HEAD + code)
    Path(folder, "helper_of_own.py").write_text("\n\n\n{}['cut']\n")
    message = refusal(f"{module}:factory")
    assert message.startswith(f"{module}:factory cannot be imported: {reason}")
    place = f"helper_of_own.py, line {4}" if line is None else f"{module}.py, line {line}"
    assert message.endswith(f"({folder}/{place})")


@pytest.mark.parametrize("kind", ["division", "leaves", "attribute", "missing", "in_torch", "of_its_own"])
def test_factory_that_fails_is_reported_with_its_line(folder: Path, kind: str) -> None:
    code, reason, line = MISTAKES[kind]
    module = f"call_{kind}"
    body = "".join(f"    {text}\n" for text in code.splitlines())
    Path(folder, f"{module}.py").write_text(f"{HEAD}def factory(num_classes):\n{body}")
    message = refusal(f"{module}:factory")
    assert message.startswith(f"{module}:factory cannot be built: {reason}")
    assert line is not None
    assert message.endswith(f"({folder}/{module}.py, line {line + 1})")


def test_error_in_an_installed_module_is_reported_with_its_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = folder / "site-packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(packages)
    Path(packages, "installed_network.py").write_text("\n1 / 0")
    assert refusal("installed_network:factory").endswith(f"({packages}/installed_network.py, line 2)")


def test_invalid_name_or_signature_is_reported_with_the_reason(folder: Path) -> None:
    Path(folder, "no_arguments.py").write_text("def factory(): ...")
    assert refusal(".relative:factory").startswith("network '.relative:factory': expected module:factory")
    assert refusal("no_arguments:factory").endswith("got an unexpected keyword argument 'num_classes'")


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Terminated])
def test_signal_in_a_factory_is_raised_unchanged(folder: Path, signal: type[BaseException]) -> None:
    module = f"stopped_by_{signal.__name__.lower()}"
    Path(folder, f"{module}.py").write_text(
        f"from splitee.errors import Terminated\ndef factory(num_classes):\n    raise {signal.__name__}"
    )
    with pytest.raises(signal):
        make(f"{module}:factory", num_classes=10, input_shape=(3,), stem="imagenet", seed=0, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["cuts", "{}"],
        ["server", "--network", "{}", "--state", "state"],
        ["simulate", "--network", "{}", "--out", "out"],
        ["demo", "--network", "{}", "--out", "out"],
        ["profile", "--network", "{}", "--state", "state"],
    ],
    ids=lambda command: command[0],
)
def test_commands_report_a_failing_network_with_line_and_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(folder)
    for module, code in (("commanded_leaves", "raise SystemExit"), ("commanded_fails", "1 / 0")):
        Path(folder, f"{module}.py").write_text(f"\n{code}")
        status, output = call(capsys, *(word.format(f"{module}:factory") for word in command))
        assert status == ExitCode.NETWORK
        assert output.startswith(f"splitee: {module}:factory cannot be imported: ")
        assert output.endswith(f"({folder}/{module}.py, line 2)")
