"""The verb ``cost`` and the text of costs."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import curvbench as cb
from curvbench.cli.app import main
from curvbench.prediction.table import ratio, scaled

PROGRAM = """
import torch

def mine():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    return model, torch.randn(8, 6), torch.arange(8) % 3, "cross_entropy"
"""


def verb(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with pytest.raises(SystemExit) as caught:
        main(["cost", *arguments])
    for number, handler in before.items():
        signal.signal(number, handler)
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_a_shipped_network_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--refresh", "100", "--dtype", "bfloat16", "--budget", "200GB", "--fisher-type", "mc")
    code, out, _ = verb(capsys, "--shapes", "llama3-8b", *options)
    lines = {line.split()[0].partition("[")[0]: line for line in reversed(out.splitlines()) if line}
    assert code == 0 and out.startswith("llama3-8b: 8,030,261,248 parameters, 1 sample of 8,192 loss terms, bfloat16")
    assert lines["eva"].endswith(" fits") and lines["adam"].endswith("does not fit")
    assert lines["shampoo"].endswith("declined") and "shampoo declines this network: the sums L and R take" in out
    assert lines["lbfgs"].split()[1].startswith("~") and not lines["adam"].split()[1].startswith("~")
    assert "kpsvd[fisher_type=mc] has no estimate" in out


def test_json_has_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = verb(capsys, "--shapes", "resnet50", "-p", "kfac", "-p", "lbfgs", "--json")
    record = json.loads(out)
    kfac, lbfgs = record["methods"]
    cost = cb.cost("resnet50", "kfac")
    assert (code, record["network"]["parameters"]) == (0, 25_557_032)
    assert {key: kfac[key] for key in ("step", "state", "total")} == {
        "step": cost.step,
        "state": cost.state,
        "total": cost.total,
    }
    assert (kfac["interval"], kfac["leading"]) == (None, []) and len(lbfgs["leading"]) == 4


def test_a_model_in_a_program_and_its_saved_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, saved = tmp_path / "mine.py", tmp_path / "mine.toml"
    program.write_text(PROGRAM)
    code, out, _ = verb(capsys, f"{program}:mine", "-p", "kfac", "--save", str(saved))
    assert code == 0 and out.startswith("Sequential: 53 parameters, 8 samples, float32")
    again = verb(capsys, "--shapes", str(saved), "-p", "kfac")[1]
    assert again.partition(":")[2] == out.partition(":")[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one network: --shapes FILE"),
        (["x.py:y", "--shapes", "gpt2"], "give one network: --shapes FILE"),
        (["--shapes", "gpt"], "no file of shapes 'gpt'"),
        (["--shapes", "gpt2", "-p", "kfca"], "unknown probe 'kfca': did you mean kfac"),
        (["--shapes", "gpt2", "-p", "kpsvd"], "kpsvd has no estimate"),
        (["--shapes", "gpt2", "--samples", "0"], "samples must be at least 1"),
        (["--shapes", "gpt2", "--refresh", "0"], "refresh must be at least 1, got 0"),
        (["--shapes", "gpt2", "--budget", "much"], "expected a size such as 500MB"),
        (["--shapes", "gpt2", "--dtype", "float8"], "float8"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = verb(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err


def test_python_refuses_what_the_command_line_refuses() -> None:
    wrong: list[dict[str, Any]] = [{"refresh": 0}, {"dtype": "float8"}, {"budget": 0.0}, {"samples": -1}]
    for settings in (*wrong, {"fisher_type": "exact"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            cb.cost("gpt2", "adam", **settings)
    with pytest.raises(ValueError, match="give inputs and targets"):
        cb.shapes(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="source must be"):
        cb.shapes(3)  # type: ignore[arg-type]


def test_several_methods_are_looked_up_by_label() -> None:
    costs = cb.cost("gpt2", ["adam", cb.probe("kfac", fisher_type="mc")], samples=2)
    assert [cost.probe for cost in costs] == ["adam", "kfac[fisher_type=mc]"] and len(costs) == 2
    assert costs["adam"].state == 2 * 4 * 124_439_808


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00123, "0.00123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234"), (2e9, "2.0e+09")],
)
def test_ratios_have_three_digits(value: float, text: str) -> None:
    assert ratio(value) == text


def test_counts_have_a_unit() -> None:
    assert [scaled(v, "B") for v in (12, 1234, 5.6e9, 7e12, 9.9e17)] == ["12 B", "1.23 kB", "5.6 GB", "7 TB", "990 PB"]
