"""Tables, pictures and one page out of a sweep's folder. The one door to pandas and matplotlib.

Importing this package imports neither; `skinjob.report.build` does.
"""
