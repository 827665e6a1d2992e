"""One page of runs: curves, samples, cards and time in a self-contained HTML file that opens offline.

`files/` has the page's template, style and script, and uPlot 1.6.32 (MIT), which draws the curves: small enough to
stand in every page, and quick with fifty runs.
"""
