# SPDX-License-Identifier: Apache-2.0
"""The page of a fleet: what is heard of it at the broker, and told to browsers."""
