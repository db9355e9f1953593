# SPDX-License-Identifier: Apache-2.0
"""Pages in the browser: the fleet's, and the parts that every page shares."""
