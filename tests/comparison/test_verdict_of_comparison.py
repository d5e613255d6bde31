"""What ``Comparison`` says of rows."""

from __future__ import annotations

from frames import frame
from planted import planted

import curvbench as cb


def test_the_verdict_and_the_notes_come_before_the_table() -> None:
    rows = frame(*planted("kfac", [0.5]), *planted("eva", [0.75], (9.0, 0.0, 5.0)))
    found = cb.Comparison(rows, ["thor was left out: it needs 9 GB, more than 1 GB"])
    said = found.verdict()
    assert "kfac closes most" in said[0] and said[-1] == "thor was left out: it needs 9 GB, more than 1 GB"
    text = str(found)
    assert text.index(f"- {said[0][:60]}") < text.index("x SGD x SGD"), "sentences stand before the table"
    assert found._repr_html_().index("<li>Within 2 gradients") < found._repr_html_().index("<table")
    assert "eva closes most" in found.verdict(flops=99)[0].partition(";")[0]
    assert found.verdict(provisional=True)[0] == f"Provisional: {said[0]}"
