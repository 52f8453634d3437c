"""Cuts, baselines, rules and tests: from counts to a verdict with its evidence. Pure."""
