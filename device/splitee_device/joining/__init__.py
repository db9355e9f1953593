# SPDX-License-Identifier: Apache-2.0
"""The device's side of pairing: from a code to an identity in the fleet."""
