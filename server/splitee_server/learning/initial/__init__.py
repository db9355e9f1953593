# SPDX-License-Identifier: Apache-2.0
"""A run's initial weights, if they do not come from the seed: one file per source."""
