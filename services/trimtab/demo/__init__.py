"""The demonstration: a digit classifier whose camera degrades, and the loop that repairs it."""
