# SPDX-License-Identifier: Apache-2.0
"""What trains the shared trunk: strategies, the order of batches, and the coordinator of committed rounds."""
