# SPDX-License-Identifier: Apache-2.0
"""The commands that need neither device nor server, such as `config`, `status` and `cuts`; one file each."""
