"""The pure assessment of a rollout, and the seam that sets traffic."""
