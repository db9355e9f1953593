# SPDX-License-Identifier: Apache-2.0
"""The sources of a device's images, and batches of the images."""
