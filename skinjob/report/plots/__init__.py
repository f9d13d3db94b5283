"""Pictures: from the numbers of a report to SVG, PNG and CSV.

Importing this package does not import matplotlib. Importing `skinjob.report.plots.canvas` does.
"""
