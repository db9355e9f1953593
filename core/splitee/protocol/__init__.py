# SPDX-License-Identifier: Apache-2.0
"""The wire protocol: topics, messages, codecs, and the checks of received messages."""
