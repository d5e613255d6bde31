"""For continuous integration: JUnit's XML, one test case per cell."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

import pandas as pd

from curvbench.analysis import views
from curvbench.analysis.check import Gate
from curvbench.analysis.compare import CELL, described
from curvbench.spec import Status

PASSED = "ok"
COUNTS = ("tests", "failures", "skipped")
SKIPPED = (Status.SKIPPED, Status.UNSUPPORTED)
_FORBIDDEN = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
Case = tuple[str, str, str, str]  # problem, name, outcome, text


def of_rows(rows: pd.DataFrame) -> str:
    """One test suite per problem, one case per probe and seed: failed, skipped if it is unsupported, or passed."""
    ends = views.cells(rows)
    return _document(
        (row["problem"], f"{row['probe']}, seed {row['seed']}", row["status"], row["reason"] or row["status"])
        for row in ends.to_dict("records")
    )


def of_gate(gate: Gate) -> str:
    """One case per cell of a check, failed with the measurements that fail."""
    texts, failing = described(gate.failing), gate.failing[CELL].itertuples(index=False, name=None)
    lines: dict[tuple[object, ...], list[str]] = {}
    for cell, row in zip(failing, texts.to_dict("records"), strict=True):
        words = (row["metric"] + ":", row["A"], "to", row["B"], row["change"], row["verdict"], row["reason"])
        lines.setdefault(cell, []).append(" ".join(filter(None, words)))
    outcomes = {True: "regression", False: PASSED}
    unread = (("left out", place.partition(" set aside: ")[0], "unreadable", place) for place in gate.left_out)
    judged = (
        (str(cell[1]), f"{cell[0]}, seed {cell[2]}", outcomes[cell in lines], "\n".join(lines.get(cell, [])))
        for cell in gate.table[CELL].drop_duplicates().itertuples(index=False, name=None)
    )
    return _document([*judged, *unread])


def _document(cases: Iterable[Case]) -> str:
    suites: dict[str, ElementTree.Element] = {}
    root = ElementTree.Element("testsuites", name="curvbench")
    for problem, name, outcome, text in (map(_written, case) for case in cases):
        if problem not in suites:
            suites[problem] = ElementTree.SubElement(root, "testsuite", {"name": problem} | dict.fromkeys(COUNTS, "0"))
        suite = suites[problem]
        case = ElementTree.SubElement(suite, "testcase", classname=problem, name=name)
        kind = "" if outcome == PASSED else "skipped" if outcome in SKIPPED else "failure"
        if kind:
            ElementTree.SubElement(case, kind, message=text.partition("\n")[0], type=outcome).text = text
        for count in ("tests", {"failure": "failures"}.get(kind, kind)):
            if count:
                suite.set(count, str(int(suite.get(count, "0")) + 1))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _written(text: str) -> str:
    """The text with signs that XML cannot hold as Python writes them."""
    return _FORBIDDEN.sub(lambda sign: repr(sign[0])[1:-1], str(text))
