"""Work that a fork server does once for all its cells: it imports this module last."""

import warnings

from curvbench.engines import family
from curvbench.identity import libraries

family.adopt()  # what is left of a cell whose keeper was killed
warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")  # of adopted processes
libraries.look_ahead()
