# SPDX-License-Identifier: Apache-2.0
"""Imported, it does once what commands do first; processes forked from here on need not do it again.

What is installed is looked up, the tests' network is divided into stages, and a network is exported, which
loads most.
"""

import click
from torch import nn

from splitee.cli.main import splitee
from splitee.networks.split import build_network
from splitee_export.graphs import trunk_graph

splitee.list_commands(click.Context(splitee))
build_network("tiny_networks:tiny", num_classes=10)
trunk_graph(nn.Linear(2, 2), (2,))
