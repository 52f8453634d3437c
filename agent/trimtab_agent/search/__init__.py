"""Space, study, trials and the workers that train them."""
