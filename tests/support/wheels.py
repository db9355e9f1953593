# SPDX-License-Identifier: Apache-2.0
"""Wheels of this tree under other versions, and software files that contain them."""

from __future__ import annotations

import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from splitee.inference.signatures import ReleaseSigner
from splitee.software.packing import describe, pack
from splitee_broker.signing_keys import PACKING_KEY, SOFTWARE_KEY, new_key

ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "web", "device", "server", "export", "lab", "broker_config")
LARGE = {".parquet", ".npz"}  # files that no test of an upgrade reads
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def own_wheel(
    folder: Path,
    version: str,
    *,
    replaced: dict[str, str] | None = None,
    needs: str = "",
    folders: Sequence[str] = FOLDERS,
) -> Path:
    """splitee's wheel from this tree, with another version.

    Args:
        replaced: texts of modules that differ, such as {"splitee_device/commands/infer.py": "1 / 0"}.
        needs: a further package that it requires.
        folders: folders of this tree in the wheel; a device has the others from its installation.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = {"splitee/__init__.py": f'__version__ = "{version}"\n', **(replaced or {})}
    about = f"hetero_splitee-{version}.dist-info"
    requires = [*project["dependencies"], *([needs] if needs else [])]
    commands = project["entry-points"]["splitee.commands"]
    path = folder / f"hetero_splitee-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for source in (ROOT / name for name in folders):
            for file in sorted(source.rglob("*")):
                name = str(file.relative_to(source))
                if file.is_file() and "__pycache__" not in name and file.suffix not in LARGE:
                    wheel.writestr(name, texts.pop(name, file.read_bytes()))
        assert not texts, "not modules of this tree"
        wheel.writestr(f"{about}/METADATA", _metadata("hetero-splitee", version, requires))
        wheel.writestr(f"{about}/WHEEL", WHEEL)
        lines = "".join(f"{name} = {place}\n" for name, place in commands.items())
        wheel.writestr(f"{about}/entry_points.txt", f"[splitee.commands]\n{lines}")
        wheel.writestr(f"{about}/RECORD", "")
    return path


def hollow_wheel(folder: Path, version: str, *, replaced: dict[str, str] | None = None) -> Path:
    """A wheel named hetero-splitee with almost empty modules, which is quickly installed.

    Args:
        replaced: texts of modules to add or replace.
    """
    texts = {
        "splitee/__init__.py": f'__version__ = "{version}"\n',
        "splitee_device/__init__.py": "",
        "splitee_device/upgrade/__init__.py": "",
        "splitee_device/upgrade/self_check.py": "import splitee\nprint(splitee.__version__)\n",
        **(replaced or {}),
    }
    path, about = (
        folder / f"hetero_splitee-{version}-py3-none-any.whl",
        f"hetero_splitee-{version}.dist-info",
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, text in texts.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{about}/METADATA", _metadata("hetero-splitee", version, []))
        wheel.writestr(f"{about}/WHEEL", WHEEL)
        wheel.writestr(f"{about}/RECORD", "")
    return path


def small_wheel(
    folder: Path,
    name: str,
    version: str,
    tag: str = "py3-none-any",
    *,
    content: bytes = b"",
    needs: str = "",
) -> Path:
    """A package of one module with its version, and a file with `content`; it requires `needs`."""
    path, about = folder / f"{name}-{version}-{tag}.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}.py", f'__version__ = "{version}"\n')
        wheel.writestr(f"{name}.data.txt", content)
        wheel.writestr(f"{about}/METADATA", _metadata(name, version, [needs] if needs else []))
        wheel.writestr(f"{about}/WHEEL", WHEEL)
        wheel.writestr(f"{about}/RECORD", "")
    return path


def _metadata(name: str, version: str, requires: list[str]) -> str:
    lines = [f"Requires-Dist: {requirement}\n" for requirement in requires]
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{''.join(lines)}"


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Make a fleet's private and public key for software."""
    folder.mkdir(exist_ok=True)
    for name, data in new_key(PACKING_KEY, SOFTWARE_KEY).items():
        (folder / name).write_bytes(data)
    return folder / PACKING_KEY, folder / SOFTWARE_KEY


def software_file(path: Path, signing_key: Path, *wheels: Path, index: str = "") -> Path:
    """Pack the wheels as `splitee pack` does."""
    pack(wheels, describe(wheels, index), ReleaseSigner(signing_key), path)
    return path
