# SPDX-License-Identifier: Apache-2.0
"""New software on a device: installed beside the old one, tried, and then accepted or given up."""
