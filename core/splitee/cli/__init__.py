# SPDX-License-Identifier: Apache-2.0
"""The command line: how commands are found, what their settings are, and what their process needs."""
