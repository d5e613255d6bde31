"""Work that a fork server does once for all its cells: it imports this module last."""

from curvbench.identity import libraries

libraries.look_ahead()
