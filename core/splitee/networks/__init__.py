# SPDX-License-Identifier: Apache-2.0
"""Networks: building, tracing, measuring, and cutting them (`split`)."""
