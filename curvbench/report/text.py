"""Reports as Markdown, for a pull request, and as LaTeX, for a paper (needs the package booktabs)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence

from curvbench.analysis import frames, tables
from curvbench.analysis.tables import escaped
from curvbench.report.run import Entry, Run, entries, headings
from curvbench.words import one_line

_LATEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "|": r"\textbar{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


def markdown(runs: Sequence[Run]) -> str:
    """Per run its verdicts and tables, what failed, its environment and its commands."""
    parts: list[str] = []
    for run in runs:
        parts.append(f"## {escaped(run.suite)}, {escaped(run.name)}")
        for problem in frames.problems(run.frame):
            rows = [[escaped(name), *(_entry(e, _md_bold) for e in row)] for name, row in _rows(run, problem)]
            head = ["method", *map(escaped, headings(run.frame, problem))]
            right = [name != "method" for name in head]
            said = "\n".join(f"- {escaped(sentence)}" for sentence in run.verdict(problem))
            parts += [f"### {escaped(run.title(problem))}", said, tables.markdown(head, rows, right)]
        parts.append(escaped(run.legend))
        if len(run.failures):
            failures = run.failures[["label", "status", "reason"]].rename(columns={"label": "measurement"})
            parts += ["### Without a value", tables.text(failures, "markdown").rstrip()]
            parts.append(_md_code(run.failures["command"].drop_duplicates()))
        parts.append("\n".join(f"- {key}: {escaped(value)}" for key, value in run.environment.items()))
        parts.append(_md_code(run.commands))
    return "\n\n".join(parts) + "\n"


def latex(runs: Sequence[Run]) -> str:
    """One table per run and problem; verdicts, what failed, environment and commands stand in comments and captions."""
    parts = [r"% needs \usepackage{booktabs}"]
    for run in runs:
        parts += [_comment(f"{key}: {value}") for key, value in run.environment.items()]
        parts += [_comment(command) for command in run.commands]
        parts += [_comment(f"{row[1]}: {row[0]}: {row[2]}") for row in run.failures.to_numpy()]
        for problem in frames.problems(run.frame):
            parts += [*map(_comment, run.verdict(problem)), _latex_table(run, problem)]
    return "\n".join(parts) + "\n"


def _rows(run: Run, problem: str) -> list[tuple[str, list[Entry]]]:
    return list(entries(run.frame, problem).items())


def _entry(entry: Entry, bold: Callable[[str], str]) -> str:
    text = bold(entry.text) if entry.best else entry.text
    return f"{text} {entry.range}" if entry.range else text


def _md_bold(text: str) -> str:
    return f"**{text}**"


def _md_code(lines: Iterable[str]) -> str:
    """A block whose fence is longer than any in it."""
    text = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"


def _latex_table(run: Run, problem: str) -> str:
    def bold(text: str) -> str:
        return rf"\textbf{{{text}}}"

    body = [
        " & ".join([_tex(name), *(_entry(e, bold).replace("-", "$-$") for e in row)]) + r" \\"
        for name, row in _rows(run, problem)
    ]
    named = headings(run.frame, problem)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(run.title(problem))}. {_tex(run.legend)}.}}",
            rf"\begin{{tabular}}{{l{'r' * len(named)}}}",
            r"\toprule",
            " & ".join(["method", *map(_tex, named)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _tex(text: object) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in one_line(text))


def _comment(text: str) -> str:
    return "\n".join(textwrap.wrap(one_line(text), 110, initial_indent="% ", subsequent_indent="%   "))
