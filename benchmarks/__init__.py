# SPDX-License-Identifier: Apache-2.0
"""One command for each claim of speed, size or safety."""
