"""Tables, pictures and one page out of a sweep's folder. The one door to pandas and matplotlib.

Importing this package imports neither; `skinjob.report.build` does.
"""

import logging

# Where the home folder cannot be written, matplotlib would print three lines of warnings.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
