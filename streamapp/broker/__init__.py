"""Delivery of messages: the two Faust transports (Kafka, embedded) and the admin port beside them."""
