"""Training recipes: the seam for training code, and those that come with trimtab."""
