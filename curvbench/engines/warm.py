"""Work that a fork server does once for all its cells: it imports this module last."""

import atexit
import os
import shutil
import warnings
from multiprocessing import forkserver

from curvbench.engines import family
from curvbench.identity import libraries


def _remove_sockets() -> None:
    """Remove the folder of the server's socket: the server ends itself when the process has died that would do so."""
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    if address:
        shutil.rmtree(os.path.dirname(address), ignore_errors=True)


atexit.register(_remove_sockets)
family.adopt()  # what is left of a cell whose keeper was killed
warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")  # of adopted processes
libraries.look_ahead()
