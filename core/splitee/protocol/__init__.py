# SPDX-License-Identifier: Apache-2.0
"""What travels, and where: topics, messages, codecs, and the checks on what others send."""
