# SPDX-License-Identifier: Apache-2.0
"""What a commit does to the models. Knows tensors, not MQTT; imports torch."""
