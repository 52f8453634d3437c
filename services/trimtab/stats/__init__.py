"""Mergeable aggregates and tests over them: prepare, merge, present. Pure."""
