"""What several pages show: the head with its verdict, a run's figures, trials, the origin."""
