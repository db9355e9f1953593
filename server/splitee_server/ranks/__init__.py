# SPDX-License-Identifier: Apache-2.0
"""Servers side by side: rank 0 leads the run, and every rank trains the trunks of its own devices.

Rank 0 alone decides about the run (members, phases, commits, metrics), like a server without ranks. The other
ranks keep nothing. When a phase opens, rank 0 sends them the trunks of their devices. They train these on
the batches that the devices send them, and return the trunks at the end of the phase. A commit is therefore
a file of rank 0, the same for any number of ranks. Rank 0 computes the averages in the same order as without
ranks, so they are bit-identical. After a restart any number of ranks can go on from a commit.
"""
