# SPDX-License-Identifier: Apache-2.0
"""The `splitee` command: finds the packages' commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points

import click
from click.shell_completion import CompletionItem

from splitee import __version__
from splitee.cli.command import Group
from splitee.cli.plain_text import PlainFormatter, echo, show_defect
from splitee.cli.postponed_compiler import postpone_compiler
from splitee.errors import ExitCode, ExtraMissing, SpliteeError

postpone_compiler()  # here and not in main(): processes that multiprocessing starts import this too

EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "pyarrow": "train",
    "onnxscript": "train",
    "iotcore": "lab",
    "matplotlib": "lab",
    "prometheus_client": "server",
    "tensorboardX": "server",
    "aiohttp": "page",
}
# Errors of a path that somebody has given, wherever it is used; any other error of the system is a defect.
PATH_REFUSED = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}


class Commands(Group):
    """Loads the module of a command only when it is called, so that no command pays for another's imports."""

    @cached_property
    def _found(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group="splitee.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._found)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._found.get(cmd_name)
        if entry is None:
            return None
        try:
            command = entry.load()
        except ModuleNotFoundError as error:
            if ctx.resilient_parsing or not cmd_name:
                raise
            raise missing_extra(error, cmd_name) from None
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.value} is no click command")
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Like click's, but from the summaries, without loading commands."""
        commands = [
            CompletionItem(name, help=SUMMARIES.get(name))
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their summaries, without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES.get(name, "")) for name in self.list_commands(ctx)])


SUMMARIES = {
    "broker": "set up a fleet's broker and certificates; check a broker",
    "calibrate": "choose the threshold of a device's model, on held-out images",
    "config": "print the settings in force, and where each comes from",
    "cuts": "list the places where a network can be cut",
    "dismiss": "continue the run without a device that is gone for good",
    "demo": "train a fleet of three devices on this machine, over a real broker",
    "device": "train on this device's own images, up to its cut",
    "export": "export trained networks as ONNX graphs, checked against torch",
    "infer": "classify images from a folder or camera, and publish the predictions",
    "join": "join a fleet by the code of an invitation",
    "label": "label this device's images in a browser; check whether they are enough",
    "page": "show the fleet in a browser, read-only and live",
    "pack": "pack the software itself into a signed file for devices",
    "predict": "classify images without torch; offload the uncertain ones",
    "plan": "show the cuts with which all devices finish a round together",
    "profile": "measure which cut suits this device",
    "release": "send devices their exported models",
    "rollback": "return to the model that was in service before",
    "serve": "predict offloaded images with exported trunks, without torch",
    "server": "train the shared trunk from the devices' features",
    "simulate": "compare strategies and baselines in one process, without a broker",
    "trust": "show or forget what this device requires of released models",
    "status": "show the fleet live, as the broker knows it",
    "upgrade": "install new software on this device and try it",
}


def missing_extra(error: ModuleNotFoundError, command: str) -> SpliteeError:
    """The line for a command whose extra is not installed; any other missing module is a defect."""
    package = (error.name or "").split(".")[0]
    if package not in EXTRAS:
        raise error
    extra = EXTRAS[package]
    return ExtraMissing(
        f"`splitee {command}` needs {package}, which is not installed: pip install 'hetero-splitee[{extra}]'"
    )


EPILOG = """`splitee COMMAND --help` shows the options of one command. docs/reference/commands.md lists them
all, and says how the Tab key completes them."""


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EPILOG,
)
@click.version_option(__version__, prog_name="splitee")
def splitee() -> None:
    """Collaborative training for fleets of unequal small devices, over MQTT."""


def _show_usage_error(error: click.ClickException) -> None:
    """Show a usage error as click does, but keep what the user wrote on one line."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()  # the help of a group without a named command
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        for line in error.ctx.get_usage().split("\n"):
            echo(line, err=True)
        echo(f"Try '{error.ctx.command_path} {error.ctx.help_option_names[-1]}' for help.", err=True)
        echo("", err=True)
    echo(f"Error: {error.format_message()}", err=True)


def _refused_path(error: OSError) -> str:
    """The line for a path that the system refuses; any other error is a defect."""
    if error.filename is None or error.errno not in PATH_REFUSED:
        raise error
    hint = "; run it by sudo, or as the account that owns it" if isinstance(error, PermissionError) else ""
    return f"{error.filename}: {error.strerror}{hint}"


def _open_standard_files() -> None:
    """Opens those of the three standard files that are closed; otherwise other files would get their numbers.

    A socket would then be read as standard input, or a started process would lose a file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs the command line and exits with a documented code."""
    _open_standard_files()
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[to_stderr])
    sys.excepthook = show_defect
    try:
        code = splitee(arguments, standalone_mode=False)
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except click.ClickException as error:
        _show_usage_error(error)
        code = ExitCode.CONFIG
    except click.Abort:
        code = 130
    except SpliteeError as error:
        echo(f"splitee: {error}", err=True)
        code = error.exit_code
    except ModuleNotFoundError as error:
        missing = missing_extra(error, " ".join(sys.argv[1:2]))
        echo(f"splitee: {missing}", err=True)
        code = missing.exit_code
    except OSError as error:
        echo(f"splitee: {_refused_path(error)}", err=True)
        code = ExitCode.STATE
    sys.exit(code if isinstance(code, int) else ExitCode.OK)
