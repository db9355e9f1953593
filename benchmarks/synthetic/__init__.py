# SPDX-License-Identifier: Apache-2.0
"""Parts of `benchmarks.fleet`: devices without training, and a server that is measured."""
