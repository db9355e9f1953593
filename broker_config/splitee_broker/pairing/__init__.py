# SPDX-License-Identifier: Apache-2.0
"""The hub's side of pairing: an invitation, and the small TLS service that issues identities for it."""
