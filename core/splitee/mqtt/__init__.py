"""The link to the broker. Knows MQTT, not what the messages say."""
