# SPDX-License-Identifier: Apache-2.0
"""Where the images that a device classifies come from, and when they are taken. Free of torch."""
