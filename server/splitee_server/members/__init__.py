# SPDX-License-Identifier: Apache-2.0
"""The devices of a run: who they are, who may join, what they send."""
