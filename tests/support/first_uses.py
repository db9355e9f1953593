# SPDX-License-Identifier: Apache-2.0
"""On import, does once what commands do at their start, so that processes forked later need not.

It looks up the installed commands, divides the tests' network into stages, and exports a network, which
loads most modules.
"""

import click
from torch import nn

from splitee.cli.main import splitee
from splitee.networks.split import build_network
from splitee_export.graphs import trunk_graph

splitee.list_commands(click.Context(splitee))
build_network("tiny_networks:tiny", num_classes=10)
trunk_graph(nn.Linear(2, 2), (2,))
