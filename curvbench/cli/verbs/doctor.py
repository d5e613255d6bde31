"""The verb ``doctor``: check whether this machine can run suites."""

from __future__ import annotations

from pathlib import Path

import click

from curvbench.cli.exits import OK, USAGE
from curvbench.cli.verbs import folder


@click.command()
@folder("--results", default=Path("results"), help="Folder of the results: whether it can be written, its free space.")
def doctor(results: Path) -> int:
    """Show environment, torch, devices, extras, memory and disk, a line each.

    Exit codes: 0 suites can be run here, 2 something that they need is missing.
    """
    from curvbench.cli import doctor as examination

    findings = examination.findings(results)
    for finding in findings:
        click.echo(f"{'ok' if finding.is_good else 'BAD':3} {finding.name:10} {finding.text}")
    return OK if all(finding.is_good for finding in findings) else USAGE
