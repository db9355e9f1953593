# SPDX-License-Identifier: Apache-2.0
"""The software itself on its way to devices."""
