# SPDX-License-Identifier: Apache-2.0
"""A device's commands, one file each."""
