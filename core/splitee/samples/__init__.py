# SPDX-License-Identifier: Apache-2.0
"""Images as networks see them, and those that a device keeps beside its model."""
