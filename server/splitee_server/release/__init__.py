# SPDX-License-Identifier: Apache-2.0
"""What was trained on its way to the devices: exported, offered, delivered."""
