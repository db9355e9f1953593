# SPDX-License-Identifier: Apache-2.0
"""The link to the broker. It knows MQTT, but not the content of messages."""
