"""``python -m curvbench`` is the command ``curvbench``."""

from curvbench.cli.app import main

main()
