# SPDX-License-Identifier: Apache-2.0
"""The page of a fleet: reads its messages at the broker, and sends them to browsers."""
