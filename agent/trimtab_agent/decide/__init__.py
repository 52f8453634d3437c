"""From evidence to a decision to retrain, or the reason why not. Pure."""
