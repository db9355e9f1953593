# SPDX-License-Identifier: Apache-2.0
"""Pages in the browser: of the fleet, and what any page of a device rests on."""
