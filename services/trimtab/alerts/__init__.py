"""The life of an alert, its outbox and its delivery."""
