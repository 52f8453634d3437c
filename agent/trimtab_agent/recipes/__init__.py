"""Built-in training recipes: image CNN and tabular classifier."""
