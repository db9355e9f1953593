"""Runs that begin from trained weights, over MQTT: the weights of one process, whatever is killed on the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from fleets import CUTS, SUPPORT, Fleet, await_message, in_one_process
from safetensors.torch import save_file

from splitee.mqtt.link import Link
from splitee.networks.split import build_network
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker
from splitee_lab.methods.simulation import Simulation
from splitee_server.learning.initial.begin import with_weights
from splitee_server.learning.initial.weights import fit
