"""The verb ``list``: the probes and problems, or the suites."""

from __future__ import annotations

import json
from typing import Any

import click

from curvbench.cli.verbs import option, users_fault


@click.command(name="list")
@option("--suites", "only_suites", is_flag=True, help="The suites that are shipped or installed instead.")
@option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(only_suites: bool, as_json: bool) -> None:
    """Show the probes and problems with their hyperparameters and defaults."""
    from curvbench import registry

    with users_fault():
        if only_suites:
            titles = {name: registry.title(file) for name, file in registry.packaged_suites().items()}
            click.echo(json.dumps(titles, indent=1) if as_json else _lines(titles))
            return
        components: dict[str, Any] = {"probes": registry.probes(), "problems": registry.problems()}
    described = {kind: [registry.describe(*item) for item in of_kind.items()] for kind, of_kind in components.items()}
    click.echo(json.dumps(described, indent=1, default=str) if as_json else _listing(described))


def _lines(titles: dict[str, str]) -> str:
    width = max(map(len, titles))
    return "\n".join(f"{name:{width}}  {title}" for name, title in titles.items())


def _listing(described: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for kind, components in described.items():
        width = max((len(c["name"]) for c in components), default=0)
        lines.append(kind)
        for c in components:
            lines.append(f"  {c['name']:{width}}  {c['description']}")
            lines += [f"  {'':{width}}    {name}={value}" for name, value in c["hyperparameters"].items()]
    return "\n".join(lines)
