# SPDX-License-Identifier: Apache-2.0
"""The methods that a fleet is compared with, one file per method."""
