# SPDX-License-Identifier: Apache-2.0
"""The weights that a run begins from, where they are not the seed's: one file a source."""
