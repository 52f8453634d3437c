"""The events that stream through Kafka: types, the CloudEvents binding, foreign formats."""
