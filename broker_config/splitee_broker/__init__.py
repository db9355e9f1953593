# SPDX-License-Identifier: Apache-2.0
"""A fleet's broker: its configuration, and the certificates by which it identifies clients."""
