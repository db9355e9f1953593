# SPDX-License-Identifier: Apache-2.0
"""The lab's commands, one file each."""
