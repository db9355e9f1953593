# SPDX-License-Identifier: Apache-2.0
"""The commands that need neither device nor server: `splitee config`, `status`, `cuts`. One each."""
