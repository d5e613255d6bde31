"""What a fork server finds out once for all its cells: it imports this last."""

from curvbench.identity import libraries

libraries.look_ahead()
