# SPDX-License-Identifier: Apache-2.0
"""How a device that has no identity yet gets one from its fleet's hub, by a code that people carry."""
