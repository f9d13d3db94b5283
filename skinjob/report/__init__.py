"""Tables, pictures and a page from a sweep's folder.

No other package uses pandas, matplotlib and SciPy.
Importing this package does not import them. Importing `skinjob.report.build` does.
"""

import logging

# If the home folder is not writable, matplotlib would print three lines of warnings.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
