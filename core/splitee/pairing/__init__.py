# SPDX-License-Identifier: Apache-2.0
"""How a device without an identity gets one from its fleet's hub, with a code that people carry."""
