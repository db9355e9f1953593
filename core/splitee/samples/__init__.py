# SPDX-License-Identifier: Apache-2.0
"""Images as inputs of networks, and the images that a device keeps beside its model."""
