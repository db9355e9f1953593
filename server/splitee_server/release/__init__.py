# SPDX-License-Identifier: Apache-2.0
"""Releases: trained models are exported, offered to the devices and delivered."""
