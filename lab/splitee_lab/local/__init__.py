# SPDX-License-Identifier: Apache-2.0
"""Processes, brokers and limits on this machine."""
