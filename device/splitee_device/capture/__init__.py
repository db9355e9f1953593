# SPDX-License-Identifier: Apache-2.0
"""The sources of the images that a device classifies, and when images are taken. Without torch."""
