"""The search for a challenger: space, study, trials, workers. Knows no store and no records."""
