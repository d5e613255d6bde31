"""``python -m curvbench`` is the command ``curvbench``."""

from curvbench.cli import main

main()
