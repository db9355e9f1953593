# SPDX-License-Identifier: Apache-2.0
"""The link to the broker. Knows MQTT, not what the messages say."""
