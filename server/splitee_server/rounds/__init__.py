# SPDX-License-Identifier: Apache-2.0
"""Rounds: opened, trained in order, committed, evaluated, reported."""
