# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.fleet` is made of: devices that have nothing to train, and a server that is measured."""
