# SPDX-License-Identifier: Apache-2.0
"""Makes the environment of new software, and tests whether it starts.

An upgrade's packages lie over those that the device was installed with. A later entry of the path has
everything that the upgrade does not replace: a wheel of 1 MB is enough, and torch is neither sent nor copied.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import distributions
from pathlib import Path

from splitee.cli.systemd import slow_disk
from splitee.durable import unwritable
from splitee.errors import SoftwareError, StateError
from splitee.software.wheelhouse import PACKAGE, SoftwareManifest, Wheelhouse, normalised
from splitee_device.upgrade.software import BASE, FOREIGN, Software

MARGIN = 64 << 20  # bytes to keep free
STEP_TIMEOUT = 300  # the longest that a step may take, in seconds, on a slow card
FULL = "No space left on device"
PATHS = "splitee-base.pth"

log = logging.getLogger(__name__)


def make_environment(software: Software, name: str, wheelhouse: Wheelhouse) -> None:
    """Makes `name`, durably; if that fails, nothing of it is left.

    Raises:
        StateError: it cannot be written, such as on a full disk.
        SoftwareError: the file is damaged, packages are missing, or the installed software does not start.
    """
    manifest, folder = wheelhouse.manifest, software.path / name
    _check_space(software.path, manifest)
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted installation
    try:
        venv.EnvBuilder(symlinks=True).create(folder)
        (_packages(folder) / PATHS).write_text(_paths(software))
        _install(folder, wheelhouse)
        _carry_over(software, folder)
        _check_requirements(folder)
        _try(folder, manifest.version)
        with slow_disk():
            os.sync()
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise unwritable(folder, error) from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_space(path: Path, manifest: SoftwareManifest) -> None:
    needed = manifest.size + manifest.unpacked + MARGIN
    free = shutil.disk_usage(path).free
    if free < needed:
        raise StateError(
            f"{path}: splitee {manifest.version} needs {needed >> 20} MiB, {free >> 20} are free: "
            "free space; what is in service runs on"
        )


def _packages(environment: Path) -> Path:
    """The folder of an environment's packages."""
    prefix = str(environment)
    return Path(sysconfig.get_path("purelib", "venv", {"base": prefix, "platbase": prefix}))


def _install(folder: Path, wheelhouse: Wheelhouse) -> None:
    """Installs the wheels from the file, or from the index that it names; only those with signed digests."""
    wheels = folder / "wheels"
    wheels.mkdir()
    flags = ["--isolated", "--no-deps", "--ignore-installed", "--no-cache-dir", "--only-binary", ":all:"]
    flags.append("--no-compile")  # the test compiles what a device needs
    if index := wheelhouse.manifest.index:
        pins = wheels / "requirements.txt"
        pins.write_text(
            "".join(
                f"{wheel.distribution}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
                for wheel in wheelhouse.manifest.wheels
            )
        )
        what = ["--index-url", index, "--require-hashes", "--requirement", str(pins)]
    else:
        with slow_disk():
            what = ["--no-index", *map(str, wheelhouse.extract(wheels))]
    done = _pip(folder, "install", "--quiet", *flags, *what)
    if done.returncode != 0:
        if FULL in done.stderr:
            raise StateError(f"cannot write {folder}: {FULL}; free space; what is in service runs on")
        raise SoftwareError(f"splitee {wheelhouse.manifest.version} is not installed: {_reason(done.stderr)}")
    shutil.rmtree(wheels)


def _pip(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the base's pip, in the environment and on it."""
    return _run([_python(folder), "-P", "-m", "pip", "--disable-pip-version-check", *arguments], folder)


def _carry_over(software: Software, folder: Path) -> None:
    """Links packages that an earlier upgrade brought and this one does not."""
    if software.in_service == BASE:
        return
    before, now = _packages(software.path / software.in_service), _packages(folder)
    replaced = {normalised(found.name or "") for found in distributions(path=[str(now)])}
    for found in distributions(path=[str(before)]):
        if normalised(found.name or "") not in replaced:
            with slow_disk():
                for file in found.files or ():
                    _link(before / file, now / file)


def _link(source: Path, target: Path) -> None:
    if ".." in source.parts or not source.is_file():
        return  # a script, which belongs to the environment's own folder
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def _paths(software: Software) -> str:
    """A line for Python's `site`: the base's packages come after the environment's own."""
    return f"import site; site.addsitedir({str(_packages(software.path / BASE))!r})\n"


def _check_requirements(folder: Path) -> None:
    """Raises SoftwareError: splitee needs a package that neither the file nor the device has."""
    done = _pip(folder, "check")
    if missing := [line for line in done.stdout.splitlines() if line.startswith(f"{PACKAGE} ")]:
        raise SoftwareError(f"{missing[0]} Pack its wheel as well (`splitee pack`)")


def _try(folder: Path, version: str) -> None:
    """Raises SoftwareError: the installed software does not load here, or is of another version."""
    done = _run([_python(folder), "-P", "-m", "splitee_device.upgrade.self_check"], folder)
    if done.returncode != 0:
        raise SoftwareError(f"splitee {version} does not start on this device: {_reason(done.stderr)}")
    if done.stdout.strip() != version:
        raise SoftwareError(f"expected splitee {version}, the wheel is {done.stdout.strip()[:40]!r}")


def _python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command. Its temporary files go into a folder of its own; pip's settings have no effect.

    Raises SoftwareError: it does not end in time.
    """
    scratch = {name: str(folder / "tmp") for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    environment = {**os.environ, **scratch, "PYTHONNOUSERSITE": "1", "PIP_CONFIG_FILE": os.devnull}
    for name in ("NOTIFY_SOCKET", "PYTHONDONTWRITEBYTECODE", *FOREIGN):
        environment.pop(name, None)
    with slow_disk(), suppress(subprocess.TimeoutExpired), _emptied(folder / "tmp"):
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=STEP_TIMEOUT,
            check=False,
        )
    raise SoftwareError(
        f"{Path(command[0]).name} {' '.join(command[1:4])} did not end within {STEP_TIMEOUT} s"
    )


@contextmanager
def _emptied(scratch: Path) -> Iterator[None]:
    """A folder that exists while something runs."""
    scratch.mkdir(exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _reason(stderr: str) -> str:
    """The most informative line of pip's output, or of a traceback."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no message"]
    said = [line for line in lines if line.startswith("ERROR: ")] or lines
    return said[-1].removeprefix("ERROR: ")[:300]
