# SPDX-License-Identifier: Apache-2.0
"""The test of new software before it runs: whether everything that a device needs loads.

It runs in the new environment, by `python -m splitee_device.upgrade.self_check`, and prints its version.
"""

from __future__ import annotations

from importlib.util import find_spec

from splitee.cli.plain_text import echo


def main() -> None:
    """Ends with a traceback if something does not load."""
    import onnxruntime

    import splitee
    import splitee_device.commands.infer

    loaded = [onnxruntime, splitee_device.commands.infer]
    if find_spec("torch") is not None:  # a device that trains
        import splitee_device.commands.device
        import splitee_device.participate

        loaded += [splitee_device.commands.device, splitee_device.participate]
    assert all(loaded)
    echo(splitee.__version__)


if __name__ == "__main__":
    main()
