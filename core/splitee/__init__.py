# SPDX-License-Identifier: Apache-2.0
"""What devices and servers of a Hetero-SplitEE fleet must agree on: cuts, messages, codecs and the link."""

__version__ = "0.1.0"
