"""A report as one HTML file: verdicts, environment, tables and the dashboard's figures, folded; it loads nothing."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape, unescape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from curvbench import __version__
from curvbench.analysis import frames, matrices, scaling, summary, tables, targets, views
from curvbench.analysis.views import ERROR, FLOPS, Quantity
from curvbench.plot.accuracy import heatmap_figure, sweep_figure
from curvbench.plot.axes import graph_objects
from curvbench.plot.blockwise import matrices_figure, spectra_figure
from curvbench.plot.exponents import growth_figure
from curvbench.plot.frontier import tradeoff_figure
from curvbench.plot.highlight import SCRIPT as HIGHLIGHT
from curvbench.plot.overview import status_figure
from curvbench.plot.phases import cost_figure
from curvbench.plot.training import curves_figure, profiles_figure
from curvbench.report.run import Entry, Run, entries, headings
from curvbench.spec.pictures import Blocks

if TYPE_CHECKING:
    import plotly.graph_objects as go

Drawn = tuple[str, "go.Figure", pd.DataFrame]
QUALITIES = (ERROR, Quantity("direction.quality", "network"))
NEAREST, MATRICES = 3, 12  # most figures of matrices: per problem, and in a run
COSTS = ("flops.counted", "time.wall", "memory.peak")
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --line: #e4e4e4; --box: #f4f4f4; --faint: #666 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --line: #33373d; --box: #22252a;
  --faint: #a0a4aa } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px;
  margin: 2em auto; padding: 0 1em } h1, h2, h3 { line-height: 1.2; margin-top: 1.6em } .wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
th:first-child, td:first-child, .text td { text-align: left } abbr { text-decoration: underline dotted }
pre { background: var(--box); padding: .7em; overflow-x: auto; white-space: pre-wrap } a { color: inherit }
small { color: var(--faint) } td small { white-space: nowrap } figure { margin: .5em 0 } figcaption { font-size: 12px }
details { border-bottom: 1px solid var(--line); padding: .4em 0 } summary { cursor: pointer }
@media print { :root { --ink: #000; --paper: #fff; --line: #ccc; --box: #fff; --faint: #444 } body { max-width: none }
  .wide { overflow: visible } figure { break-inside: avoid } nav { display: none } }
"""
# A figure is drawn when it is unfolded, and every one before the page is printed.
SCRIPT = """
const packed = Uint8Array.from(atob(document.getElementById("bundle").textContent), c => c.charCodeAt(0));
const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
new Response(stream).text().then(text => {
  const bundle = JSON.parse(text), library = document.createElement("script");
  library.textContent = bundle.library;
  document.head.append(library);
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const paper = {paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: "#d0d0d0"}};
  function draw(details, dark) {
    const figure = details.querySelector("figure");
    const {data, layout, csv} = bundle.figures[figure.dataset.figure], name = figure.dataset.name;
    const whole = {...layout, template: bundle.template, ...(dark ? paper : {})};
    if (dark) for (const key in whole)
      if (/^[xy]axis/.test(key)) whole[key] = {...whole[key], gridcolor: "#33373d", zerolinecolor: "#33373d"};
    const config = {responsive: true, displaylogo: false, toImageButtonOptions: {format: "svg", filename: name}};
    Plotly.react(figure.firstElementChild, data, whole, config);
    figure.querySelector("a").href = URL.createObjectURL(new Blob([csv], {type: "text/csv"}));
  }
  const all = [...document.querySelectorAll("details")].filter(details => details.querySelector("figure"));
  for (const details of all) {
    details.addEventListener("toggle", () => details.open && draw(details, isDark));
    if (details.open) draw(details, isDark);
  }
  addEventListener("beforeprint", () => all.forEach(details => { details.open = true; draw(details, false); }));
}).catch(error => document.querySelector("nav").append(`The figures cannot be shown: ${error}`));
"""


def html(runs: Sequence[Run]) -> str:
    """The page; raises ImportError without plotly.

    Plotly and the figures with their data are packed, because Plotly alone takes 5 MB.
    """
    title = "curvbench: " + ", ".join(run.name for run in runs)
    drawn = [list(figures(run)) for run in runs]
    places = itertools.accumulate(map(len, drawn), initial=0)
    body = "\n".join(part for one in zip(runs, drawn, places, strict=False) for part in _run(*one))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n'
        f"<p><small>Made by curvbench {__version__}.</small></p>\n"
        f'<script type="text/plain" id="bundle">{_packed(list(itertools.chain(*drawn)))}</script>\n'
        f"<script>{SCRIPT}{HIGHLIGHT}</script>\n</body>\n</html>\n"
    )


def _packed(drawn: Sequence[Drawn]) -> str:
    """Plotly, its template, and every figure with its data as CSV: JSON, compressed, in base64."""
    graph_objects()
    from plotly.offline import get_plotlyjs

    figures, template = [], None
    for _, figure, data in drawn:
        content = json.loads(figure.to_json())
        template = content["layout"].pop("template")  # one for all
        figures.append({"data": content["data"], "layout": content["layout"], "csv": tables.csv(data)})
    bundle = {"library": get_plotlyjs(), "template": template, "figures": figures}
    return base64.b64encode(gzip.compress(json.dumps(bundle).encode(), 9, mtime=0)).decode()


def figures(run: Run) -> Iterator[Drawn]:
    """Every figure of the page with its name and its data, in order; how the cells ended comes last."""
    for problem in frames.problems(run.frame):
        yield from _of_problem(run, problem)
    yield from itertools.chain(_sweeps(run), _growth(run))
    yield _statuses(run)


def _run(run: Run, drawn: Sequence[Drawn], first: int) -> Iterator[str]:
    """Result, setting and environment, then the contents, then the tables and figures."""
    problems = frames.problems(run.frame)
    yield f"<h1>{escape(run.suite)}, {escape(run.name)}</h1>"
    for problem in problems:
        yield f"<h2>{escape(run.title(problem))}</h2>"
        yield f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in run.verdict(problem))}</ul>"
    facts = pd.DataFrame(run.environment.items(), columns=["environment", ""])
    yield _table(facts, "text") + f"<pre>{escape(chr(10).join(run.commands))}</pre>"
    titles = [_title(figure) for _, figure, _ in drawn]
    entries = [(f"table-{first}-{place}", f"Table: {problem}") for place, problem in enumerate(problems)]
    entries += [(f"figure-{first + place}", title) for place, title in enumerate(titles)]
    listed = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in entries)
    yield f"<nav><h2>Contents</h2><ol>{listed}</ol></nav>"
    for place, problem in enumerate(problems):
        yield f'<h2 id="table-{first}-{place}">{escape(problem)}</h2>' + _summary(run, problem)
    if len(run.failures):
        yield "<h2>Without a value</h2>" + _table(run.failures, "text")
    yield "<h2>Figures</h2>"
    yield from (_figure(first + place, *one, is_open=place == 0) for place, one in enumerate(drawn))


def _title(figure: go.Figure) -> str:
    return unescape((figure.layout.title.text or "").replace("<br>", " "))


def _summary(run: Run, problem: str) -> str:
    named = headings(run.frame, problem).items()
    head = "".join(f'<th><abbr title="{escape(meaning)}">{escape(name)}</abbr></th>' for name, meaning in named)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(map(_cell, of_probe))}</tr>"
        for name, of_probe in entries(run.frame, problem).items()
    )
    note = escape(run.legend)
    return f'<div class="wide"><table><tr><th>method</th>{head}</tr>{rows}</table></div><p><small>{note}</small></p>'


def _cell(entry: Entry) -> str:
    text = f"<b>{entry.text}</b>" if entry.best else entry.text
    return f"<td>{text}{f' <small>{escape(entry.range)}</small>' if entry.range else ''}</td>"


def _statuses(run: Run) -> Drawn:
    statuses = views.status(run.frame)
    return "status", status_figure(statuses, frames.surrogates(run.frame)), statuses


def _of_problem(run: Run, problem: str) -> Iterator[Drawn]:
    for name, figure, data in itertools.chain(_figures(run, problem), _matrices(run, problem)):
        yield f"{name}-{problem}", figure, data


def _figures(run: Run, problem: str) -> Iterator[Drawn]:
    """The figures that there are rows for: trade-offs, layers, costs, training."""
    rows = frames.of_problem(run.frame, problem)
    quantities, name = views.quantities(rows, views.FAMILIES), frames.shown_problem(rows, problem)
    for quality in QUALITIES:
        if quality in quantities and FLOPS in quantities:
            table = views.tradeoff(rows, problem, FLOPS, quality)
            yield f"tradeoff-{quality.metric}", tradeoff_figure(table, name, FLOPS, quality), table
    if ERROR in quantities:
        layers = views.layers(rows, problem, ERROR.metric)
        yield "layers", heatmap_figure(layers, views.endings(rows), name, ERROR.metric), layers.reset_index()
    for metric in COSTS:
        if Quantity(metric, "step") in quantities:
            phases = views.phases(rows, problem, metric)
            yield f"cost-{metric}", cost_figure(phases, name, metric, relative=metric != "memory.peak"), phases
    yield from _trainings(rows, problem, name)


def _trainings(rows: pd.DataFrame, problem: str, name: str) -> Iterator[Drawn]:
    endings, is_surrogate = views.endings(rows), bool(frames.surrogates(rows))
    for metric in views.trained(rows):
        curves = views.curves(rows, problem, metric)
        yield f"training-{metric}", curves_figure(curves, endings, name, metric), curves
        if metric.startswith("test."):
            target = targets.usual_target(rows, metric)
            trials = targets.trials(rows, metric, target)
            figure = profiles_figure(trials, metric, target, is_surrogate=is_surrogate)
            yield f"profiles-{metric}", figure, targets.to_target(trials)


def _matrices(run: Run, problem: str) -> Iterator[Drawn]:
    """The stored blocks of the probes nearest to the exact Fisher, and the spectra of one layer.

    Figure and data of a block of order 63 take 0.3 MB, so that a run of more problems has fewer per problem.
    """
    blocks_of = run.blocks_of(problem)
    few = max(1, min(NEAREST, MATRICES // len(frames.problems(run.frame))))
    for probe in matrices.nearest(blocks_of)[:few]:
        blocks = _in_single(matrices.fitted(blocks_of[probe]))
        name = f"{summary.digits(matrices.fitting_scale(blocks_of[probe]))} x {probe}"
        figure = matrices_figure(blocks.exact, blocks.approximation, blocks.layer, name, blocks.inputs)
        yield f"matrices-{probe}", figure, matrices.entries(blocks)
    stored = blocks_of.values()
    layers = [layer for blocks in stored for layer in (blocks.layer, *blocks.spectra) if layer in blocks.spectra]
    if layers:
        spectra = matrices.spectra(blocks_of, layers[0])
        yield "spectra", spectra_figure(spectra, layers[0]), spectra


def _in_single(blocks: Blocks) -> Blocks:
    single = np.float32  # halves the size of the page
    return replace(blocks, exact=blocks.exact.astype(single), approximation=blocks.approximation.astype(single))


def _sweeps(run: Run) -> Iterator[Drawn]:
    settings = views.settings(run.frame, run.record)
    for parameter in views.parameters(run.frame, settings):
        for quality in QUALITIES:
            table = views.sweep(run.frame, settings, parameter, quality)
            if len(table):
                yield f"sweep-{parameter}", sweep_figure(table, parameter, quality), table


def _growth(run: Run) -> Iterator[Drawn]:
    table = scaling.growing(run.frame)
    for problem, rows in table.groupby("problem", sort=False):
        yield f"growth-{problem}", growth_figure(rows, str(problem)), rows


def _figure(place: int, name: str, figure: go.Figure, data: pd.DataFrame, is_open: bool = False) -> str:
    """A figure that is folded; the script draws it, and gives its link the data."""
    return (
        f'<details id="figure-{place}"{" open" * is_open}><summary>{escape(_title(figure))}</summary>'
        f'<figure data-figure="{place}" data-name="{escape(name)}"><div style="height: {figure.layout.height}px"></div>'
        f'<figcaption><a download="{escape(name)}.csv">data (CSV)</a></figcaption></figure></details>'
    )


def _table(data: pd.DataFrame, kind: str) -> str:
    head = "".join(f"<th>{escape(str(name))}</th>" for name in data)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(str(v))}</td>' for v in row)}</tr>" for row in data.to_numpy())
    return f'<div class="wide"><table class="{kind}"><tr>{head}</tr>{rows}</table></div>'
