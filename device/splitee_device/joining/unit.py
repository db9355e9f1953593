# SPDX-License-Identifier: Apache-2.0
"""Starts the service that install.sh has installed, if there is one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from splitee_device.joining.identity_files import IdentityFiles

INSTALLED = Path("/etc/splitee")
UNIT = "splitee-device.service"
PLACES = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"))


def start(files: IdentityFiles) -> str:
    """Has systemd start or restart the device if possible. Returns a line on that, or on what to do next."""
    by_hand = f"next: splitee device --config {files.settings} --state DIR"
    if files.lacks("data"):
        by_hand += " --data FOLDER"
    if files.directory.resolve() != INSTALLED or not _is_installed():
        return by_hand
    if files.lacks("data"):
        return f'next: write data = "FOLDER" into {files.settings}, then: sudo systemctl enable --now {UNIT}'
    if os.geteuid() != 0:
        return f"next: sudo systemctl enable {UNIT}; sudo systemctl restart {UNIT}"
    for command in (("enable", "--quiet"), ("restart", "--no-block")):
        done = subprocess.run(["systemctl", *command, UNIT], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"systemctl {command[0]} {UNIT} failed: {done.stderr.strip()}; {by_hand}"
    return f"started: systemctl status {UNIT}"


def _is_installed() -> bool:
    return Path("/run/systemd/system").is_dir() and any((place / UNIT).exists() for place in PLACES)
