# SPDX-License-Identifier: Apache-2.0
"""What the fleet's strategies are compared with: same images, rounds, batches and schedule."""
