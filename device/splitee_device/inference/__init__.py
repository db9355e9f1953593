# SPDX-License-Identifier: Apache-2.0
"""A device that predicts: its models, their delivery, its predictions. Without torch."""
