# SPDX-License-Identifier: Apache-2.0
"""Parts of `benchmarks.fleet`: devices without training, and a measured server."""
