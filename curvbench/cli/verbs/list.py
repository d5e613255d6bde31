"""The verb ``list``: the probes and problems."""

from __future__ import annotations

import json
from typing import Any

import click

from curvbench.cli.verbs import option, users_fault


@click.command(name="list")
@option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(as_json: bool) -> None:
    """Show the probes and problems with their hyperparameters and defaults."""
    from curvbench import registry

    with users_fault():
        components: dict[str, Any] = {"probes": registry.probes(), "problems": registry.problems()}
    described = {kind: [registry.describe(*item) for item in of_kind.items()] for kind, of_kind in components.items()}
    click.echo(json.dumps(described, indent=1, default=str) if as_json else _listing(described))


def _listing(described: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for kind, components in described.items():
        width = max((len(c["name"]) for c in components), default=0)
        lines.append(kind)
        for c in components:
            lines.append(f"  {c['name']:{width}}  {c['description']}")
            lines += [f"  {'':{width}}    {name}={value}" for name, value in c["hyperparameters"].items()]
    return "\n".join(lines)
