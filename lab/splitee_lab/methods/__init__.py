# SPDX-License-Identifier: Apache-2.0
"""What a fleet is compared with, one file a method."""
