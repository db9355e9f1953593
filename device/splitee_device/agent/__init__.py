# SPDX-License-Identifier: Apache-2.0
"""A device in a run: the messages it receives and sends, and the rounds that it trains."""
