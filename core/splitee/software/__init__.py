# SPDX-License-Identifier: Apache-2.0
"""The software itself, in signed files for devices."""
