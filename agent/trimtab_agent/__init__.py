"""The agent: decides, retrains, gates and rolls out."""
