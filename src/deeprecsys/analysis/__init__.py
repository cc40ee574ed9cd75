"""What records mean: percentiles with intervals, verdicts, histograms, use and energy."""
