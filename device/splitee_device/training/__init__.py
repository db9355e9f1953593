# SPDX-License-Identifier: Apache-2.0
"""The device's share of the training, and its durable state. Imports torch."""
