# SPDX-License-Identifier: Apache-2.0
"""Servers side by side: rank 0 leads the run, and every rank trains the trunks of the devices dealt to it.

Everything that decides about the run, members, phases, commits, metrics, is rank 0's alone, and is what a
server by itself does. The other ranks keep nothing: with each phase that opens they are sent the trunks of
their devices, train them on the batches that those devices send to them, and give back what has become of
them when the phase is over. So a commit is rank 0's file, the same whatever the number of ranks; averages are
taken where they always were, in the same order, with the same bits; and after a restart any number of ranks
goes on from it.
"""
