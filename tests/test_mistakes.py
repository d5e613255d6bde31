"""Ordinary mistakes end in one line that says what was expected, what came and what to do."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from fake_measure import Fake, Toy
from frames import fisher_cell, write_run
from torch import nn

import curvbench as cb
from curvbench.analysis import tables
from curvbench.cli.app import main
from curvbench.registry import patience

HEAD = """
import curvbench.registry as registry
from curvbench import probe, problem
from curvbench.spec import Preset, Suite, Training
"""
ONE = "[problem('mlp')], [probe('kfac')]"
PRESETS = {
    "names": "['mlp'], ['kfac']",
    "plain names": "'mlp', 'kfac'",
    "classes": "[registry.problems()['mlp']], [registry.probes()['kfac']]",
    "exchanged": "[probe('kfac')], [problem('mlp')]",
    "no lists": "problem('mlp'), probe('kfac')",
    "nothing": "None, None",
    "a probe twice": "[problem('mlp')], [probe('kfac'), probe('kfac', damping=1e-3)]",
    "a problem twice": "[problem('mlp')] * 2, [probe('kfac')]",
    "a seed twice": f"{ONE}, seeds=(0, 0)",
    "a seed": f"{ONE}, seeds=3",
    "a seed out of range": f"{ONE}, seeds=(10**30,)",
    "a seed below zero": f"{ONE}, seeds=(-1,)",
    "a text as a seed": f"{ONE}, seeds=('a',)",
    "a dtype": f"{ONE}, dtype='float8'",
    "a damping": f"{ONE}, damping='x'",
    "meters": f"{ONE}, meters=3",
    "a training": f"{ONE}, training='x'",
    "pairs of names": f"{ONE}, pairs=[('mlp', 'kfac')]",
    "no pairs": f"{ONE}, pairs=[problem('mlp')]",
    "an unknown field": f"{ONE}, training=Training(epochs=1, lr=0.1), tuned={{'kfac': {{'x': 1}}}}",
}
SUITES = {name: f"SUITE = Suite('t', {{'default': Preset({preset})}})" for name, preset in PRESETS.items()} | {
    "a text as a preset": "SUITE = Suite('t', {'default': 'x'})",
    "a list of presets": f"SUITE = Suite('t', [Preset({ONE})])",
    "the class": "SUITE = Suite",
    "an exit": "raise SystemExit(7)",
    "an interrupt of its own": "raise KeyboardInterrupt",
    "an exception of the base": "class Own(BaseException): pass\nraise Own('x')",
    "a loop": "while True: pass",
    "a loop that goes on": "try:\n    while True: pass\nexcept BaseException:\n    pass\nwhile True: pass",
    "a wait": "import time; time.sleep(1000)",
}


def line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of bad input."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("curvbench: ") and err.count("\n") == 1
    return err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(patience.SETTING, "0.2")
    return tmp_path


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_that_cannot_be_used(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "loop" not in name and "wait" not in name:
        os.environ[patience.SETTING] = "30"
    (here / "mine.py").write_text(HEAD + SUITES[name])
    assert "mine.py" in line(capsys, "validate", "mine")


@pytest.mark.parametrize("name", ["README.md", "...py", "mine"])
def test_what_is_no_suite(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / name).write_text(HEAD)
    line(capsys, "run", name, "--dry-run")


@pytest.mark.parametrize(
    "option",
    [
        *("--threads=1025", "--threads=0", "--budget=", "--timeout=", "--results=", "--data=", "--budget=9999999d"),
        *("--seed=0,0", "--seed=0-2,1", "--rerun-failed=", "-pkfac", "-mmlp", "--damping=nan"),
        "-plbfgs[memory=99999999999999999999]",
    ],
)
def test_an_option_out_of_range(option: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ[patience.SETTING] = "30"
    (here / "mine.py").write_text(f"{HEAD}SUITE = Suite('t', {{'default': Preset({ONE})}})")
    line(capsys, "run", "mine", "--dry-run", option, *([option] if option in ("-pkfac", "-mmlp") else []))


@pytest.mark.parametrize("verb", [("report",), ("status",), ("claims",), ("export", "--format", "csv"), ("dashboard",)])
def test_an_empty_text_is_not_the_working_directory(
    verb: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "got an empty text" in line(capsys, verb[0], "", *verb[1:])


MODEL = nn.Linear(3, 2).double()
X, Y = torch.randn(4, 3).double(), torch.randint(2, (4,))
INSTANCE = cb.Instance(MODEL, X, Y)
with torch.inference_mode():
    INFERRED = torch.ones(4, 3).double()
CALLS: dict[str, Callable[[], object]] = {
    "targets of a list": lambda: cb.Instance(MODEL, X, [0, 1, 0, 1]),  # type: ignore[arg-type]
    "no targets": lambda: cb.Instance(MODEL, X, None),  # type: ignore[arg-type]
    "targets without numbers": lambda: cb.Instance(MODEL, X, Y.to("meta")),
    "inputs without numbers": lambda: cb.Instance(MODEL, X.to("meta"), Y),
    "sparse inputs": lambda: cb.Instance(MODEL, X.to_sparse(), Y),
    "sparse rows": lambda: cb.Instance(MODEL, X.to_sparse_csr(), Y),
    "nested inputs": lambda: cb.Instance(MODEL, torch.nested.nested_tensor([X[:2], X[2:]]), Y),
    "inputs of inference": lambda: cb.Instance(MODEL, INFERRED, Y),
    "a model without numbers": lambda: cb.Instance(nn.Linear(3, 2, device="meta").double(), X, Y),
    "the class of a model": lambda: cb.Instance(nn.Linear, X, Y),  # type: ignore[arg-type]
    "no model": lambda: cb.Instance(None, X, Y),  # type: ignore[arg-type]
    "fit of a name": lambda: cb.fit("kfac", INSTANCE),  # type: ignore[arg-type]
    "fit of a class": lambda: cb.fit(type(cb.probe("kfac")), INSTANCE),  # type: ignore[arg-type]
    "fit to a class": lambda: cb.fit(cb.probe("kfac"), cb.Instance),  # type: ignore[arg-type]
    "fit to a model": lambda: cb.fit(cb.probe("kfac"), MODEL),  # type: ignore[arg-type]
    "the Fisher of a model": lambda: cb.exact_fisher(MODEL),  # type: ignore[arg-type]
    "errors of a probe": lambda: cb.errors(cb.probe("kfac"), cb.exact_fisher(INSTANCE)),  # type: ignore[arg-type]
    "a direction of a model": lambda: cb.direction_errors(cb.probe("kfac"), MODEL),  # type: ignore[arg-type]
    "a damping of a text": lambda: cb.direction_errors(cb.probe("kfac"), INSTANCE, "x"),  # type: ignore[arg-type]
    "a number as a name": lambda: cb.probe(3),  # type: ignore[arg-type]
    "a number out of range": lambda: cb.probe("kfac", mc_samples=10**30),
    "a probe twice": lambda: cb.measure(MODEL, X, Y, probes=["kfac", "kfac"]),
    "no path": lambda: cb.load(None),  # type: ignore[arg-type]
    "an empty path": lambda: cb.load(""),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_call_with_the_wrong_kind(call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    text = str(raised.value)
    assert "\n" not in text and "takes" not in text and "argument" not in text, "Python's own words say too little"


TEXTS = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "'=a", "''-a", "a=1", "-298", "+1.5e3", "-inf", "'quoted'", ""]


def test_no_text_of_a_csv_is_a_formula() -> None:
    frame = pd.DataFrame({"=name": TEXTS, "value": [-298.0] * len(TEXTS)})
    rows = list(csv.reader(io.StringIO(tables.csv(frame), newline="")))
    assert rows[0] == ["'=name", "value"]
    written = [row[0] for row in rows[1:]]
    assert written[:8] == [f"'{text}" for text in TEXTS[:8]] and written[8:] == TEXTS[8:]
    assert [re.sub(r"^'(?='*[=+@\t\r-])", "", text) for text in written] == TEXTS, "reading it back"
    assert {row[1] for row in rows[1:]} == {"-298.0"}
    raw = list(csv.reader(io.StringIO(tables.csv(frame, raw=True), newline="")))
    assert [row[0] for row in raw] == ["=name", *TEXTS]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there alone")
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(errno.EAGAIN, "no process")])
def test_what_the_system_has_no_more_of_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("curvbench.cli.app.cli.main", fail)
    assert "raise the limits of memory, processes and files" in line(capsys, "status", ".")


def test_names_that_are_not_utf8_in_a_locale_of_ascii(tmp_path: Path) -> None:
    run = write_run(tmp_path / "results", "r1", [(Fake("\u00e9"), Toy(), fisher_cell())])
    folder = os.fsencode(tmp_path) + b"/\xff\xc3\xa9"
    os.rename(run.parents[1], folder)
    root = Path(__file__).parents[1]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "curvbench", "export", folder, "--format", "csv"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "\u00e9" in done.stdout.decode()
