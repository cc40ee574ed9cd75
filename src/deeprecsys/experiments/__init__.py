"""What joins rooms: guided tuning, plans, the paper's results, and what the verbs find."""
