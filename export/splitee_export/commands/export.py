# SPDX-License-Identifier: Apache-2.0
"""`splitee export`: a device's or a server's state as ONNX graphs, checked against torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from splitee.cli.bounds import number, whole
from splitee.cli.command import Command, section
from splitee.cli.pairs import require
from splitee.cli.plain_text import echo
from splitee.cli.settings import setting, settings_file
from splitee.cli.verbosity import log_options
from splitee.errors import ConfigError
from splitee.inference.manifest import MANIFEST, ClientManifest, TrunkManifest
from splitee.samples.storage import Samples, load_region
from splitee_export.round_names import BEST, LAST

log = logging.getLogger(__name__)

DIRECTORY = click.Path(path_type=Path)


class RoundType(click.ParamType[str]):
    """last, best, or the number of a round."""

    name = "last|best|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in (LAST, BEST):
            return str(value)
        return str(whole(1).convert(value, param, ctx))


@click.command(cls=Command)
@settings_file
@log_options()
@section(
    "State and model",
    setting(
        "--state",
        type=DIRECTORY,
        required=True,
        metavar="DIR",
        help="State of a device (--state of `splitee device`) or of a server.",
    ),
    setting("--out", type=DIRECTORY, required=True, metavar="DIR", help="Folder for the exported model."),
    setting(
        "--round",
        "wanted",
        type=RoundType(),
        default=LAST,
        help="Round to export: last; best, of a server's state, as its run releases it; or the number of a "
        "round that is kept.",
    ),
    setting(
        "--network",
        metavar="MODULE:FACTORY",
        help="Factory that may build the state's network: its code runs here.",
        show_default="none",
    ),
    setting(
        "--client",
        "clients",
        type=DIRECTORY,
        multiple=True,
        metavar="DIR",
        help="Exported model of a device, whose images' features test its trunk: for a server's state.",
        show_default="none",
    ),
)
@section(
    "Quantization",
    setting("--int8", is_flag=True, help="Quantize a device's model, calibrated on its own images."),
    setting(
        "--max-int8-drop",
        type=number(0, 1),
        default=0.01,
        metavar="SHARE",
        help="Largest loss of the exit's accuracy with --int8; if it is larger, fp32 stays in service.",
    ),
    setting(
        "--benchmark",
        is_flag=True,
        help="Time fp32 and int8 on this machine, and put the faster in service.",
    ),
)
def export(
    state: Path,
    network: str | None,
    wanted: str,
    out: Path,
    clients: tuple[Path, ...],
    int8: bool,
    max_int8_drop: float,
    benchmark: bool,
) -> None:
    """Write a committed round as ONNX: client.onnx of a device, a trunk for each cut of a server."""
    require("--int8 or --benchmark", int8 or benchmark, "--max-int8-drop")
    if out.resolve() == state.resolve():
        raise ConfigError("--out is the --state directory: give the model its own directory")

    from splitee_export.models import Int8Policy, export_client, export_trunks  # with torch
    from splitee_export.states import DeviceState, read_state

    held = read_state(state, network, wanted)
    if isinstance(held, DeviceState):
        if clients:
            raise ConfigError(f"--client is for a server's state; {state} is of device {held.device}")
        policy = Int8Policy(max_int8_drop, benchmark) if int8 or benchmark else None
        exported = export_client(held, Samples.read(state), out, region=load_region(state), int8=policy)
        _report_client(out, exported)
    else:
        if int8 or benchmark:
            raise ConfigError(f"--int8 and --benchmark are for a device's state; {state} is of a server")
        _report_trunks(out, export_trunks(held, out, clients))


def _report_client(out: Path, manifest: ClientManifest) -> None:
    parity, quantization = manifest.parity, manifest.quantization
    echo(
        f"{out / manifest.file}: {manifest.network} up to {manifest.stage} (cut {manifest.cut}), round "
        f"{manifest.round}; off by {parity.max_error:.1e} on {parity.samples} {parity.inputs}"
    )
    if quantization is not None:
        timed = ""
        if quantization.fp32_ms is not None:
            timed = f"; {quantization.fp32_ms:.2f} ms -> {quantization.int8_ms:.2f} ms an image"
        echo(
            f"int8 {'in service' if quantization.kept else 'not kept'}: exit accuracy "
            f"{quantization.accuracy_fp32:.1%} -> {quantization.accuracy_int8:.1%}{timed}"
        )


def _report_trunks(out: Path, manifest: TrunkManifest) -> None:
    for name, graph in manifest.trunks.items():
        users = ", ".join(device for device, file in manifest.devices.items() if file == name)
        echo(
            f"{out / name}: for {users}, round {manifest.round}; "
            f"off by {graph.parity.max_error:.1e} on {graph.parity.samples} {graph.parity.inputs} inputs"
        )
    echo(f"{out / MANIFEST}: {len(manifest.trunks)} trunks for {len(manifest.devices)} devices")
