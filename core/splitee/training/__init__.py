# SPDX-License-Identifier: Apache-2.0
"""What every trainer of a fleet shares. Imports torch."""
