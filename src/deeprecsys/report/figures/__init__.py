"""Figures as plain Plotly descriptions: from a summary and records, no drawing here.

A file a subject, a function a figure; each answers {"data": [...], "layout": {...}}, or None where
there is nothing to show. What they share is in `traces.py`, `axes.py` and `colours.py`; text and
grid take the page's own colours, light or dark (`page.js`).
"""

from deeprecsys.report.figures.traces import Figure

__all__ = ["Figure"]
