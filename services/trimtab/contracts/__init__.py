"""The model contract: what a model promises, and how it is watched."""
