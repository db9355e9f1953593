# SPDX-License-Identifier: Apache-2.0
"""The code that all trainers of a fleet share. Imports torch."""
