# SPDX-License-Identifier: Apache-2.0
"""A whole fleet on one machine, in one command."""
