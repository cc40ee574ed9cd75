"""The colours of figures; text and grid have the page's, light or dark."""

# Okabe and Ito's palette: told apart by every kind of colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8f98"
CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", RED, "#F0E442")
# A percentile of a summary, and its colour.
PERCENTILES = (("p50_s", GREEN), ("p95_s", BLUE), ("p99_s", ORANGE))
