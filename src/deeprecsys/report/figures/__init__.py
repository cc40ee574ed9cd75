"""Figures as plain Plotly descriptions: from a summary and records, no drawing here.

A file a subject, a function a figure; each answers {"data": [...], "layout": {...}}, or None where
there is nothing to show. `traces.py` holds what they share. Colours of text and grid are the page's
(`page.js` paints them for light and dark).
"""

from deeprecsys.report.figures.traces import Figure

__all__ = ["Figure"]
