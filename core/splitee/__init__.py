# SPDX-License-Identifier: Apache-2.0
"""The code that devices and servers of a Hetero-SplitEE fleet share: cuts, messages, codecs and the link."""

__version__ = "0.1.0"
