from __future__ import annotations

import pickle
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from curvbench import registry
from curvbench.registry.fields import read
from curvbench.spec import About, Component, Probe, Problem
from curvbench.spec.fields import check

MINE = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
from curvbench.spec import Probe

@dataclass(frozen=True)
class MyProbe(Probe):
    """Mine.

    And more about it.
    """
    damping: float = 1e-3
    rank: int | None = None
    kind: Literal["a", "b"] = "a"
    exact: bool = False
    name_of: str = ""

    def __post_init__(self):
        if self.damping < 0:
            raise ValueError(f"damping must not be negative, got {self.damping}")

    def update(self, state, batch): ...
    def precondition(self, state, gradient): ...
    def operator(self, state): ...
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "a [folder], 'with' \"quotes\" = and\nlines"
    folder.mkdir()
    path = folder / "my probe.py"
    path.write_text(MINE)
    return path


def test_every_file_is_a_component() -> None:
    package = Path(registry.__file__).parents[1]
    for folder, kinds in (("probes", registry.probes()), ("problems", registry.problems())):
        files = {path.stem for path in (package / folder).glob("*.py") if not path.name.startswith("_")}
        assert files <= set(kinds)
        assert all(issubclass(c, Probe if folder == "probes" else Problem) for c in kinds.values())


@pytest.mark.parametrize("text", ["kfac", "kfac[damping=0.01]", "kfac[fisher_type=mc,mc_samples=3]", " identity "])
def test_a_label_reads_as_itself(text: str) -> None:
    component = registry.parse_probe(text)
    assert component.label == text.strip()
    assert registry.parse_probe(component.label) == component
    assert registry.selector(component) == component.label


@pytest.mark.parametrize("alias", ["type2", "exact", "type-2"])
def test_aliases_of_the_fisher_type(alias: str) -> None:
    assert registry.probe("kfac", fisher_type=alias) == registry.probe("kfac") == registry.parse_probe("kfac")
    assert registry.parse_probe(f"kfac[fisher_type={alias}]").label == "kfac"


def test_a_user_file_with_a_hostile_path(mine: Path) -> None:
    probe = registry.parse_probe(f"{mine}:MyProbe[damping=1e-2,rank=4,kind=b,exact=1,name_of=x y]")
    expected = {"damping": 0.01, "rank": 4, "kind": "b", "exact": True, "name_of": "x y"}
    assert probe.hyperparameters == expected
    assert registry.parse_probe(registry.selector(probe)) == probe
    assert registry.parse_probe(f"{mine}:MyProbe[rank=none]").hyperparameters["rank"] is None
    assert registry.describe("MyProbe", type(probe))["description"] == "Mine."


def test_a_probe_within_a_probe_reads_as_itself() -> None:
    text = "cg[iterations=5,preconditioner=cg[preconditioner=kfac[fisher_type=mc,damping=0.1],warm=True]]"
    inner = registry.probe("cg", preconditioner=registry.probe("kfac", fisher_type="mc", damping=0.1), warm=True)
    probe = registry.probe("cg", iterations=5, preconditioner=inner)
    assert registry.parse_probe(text) == probe and hash(registry.parse_probe(text)) == hash(probe)
    assert probe.label == text == registry.selector(probe)
    assert registry.probe("cg", iterations=5, preconditioner=inner.label) == probe
    assert registry.parse_probe("cg[preconditioner=none]") == registry.probe("cg")
    assert pickle.loads(pickle.dumps(probe)) == probe
    assert probe.inner == {"preconditioner": inner} and list(inner.inner["preconditioner"].inner) == []
    described = registry.describe("cg", type(probe))
    assert described["allowed"]["preconditioner"] == "a probe or none"
    assert described["hyperparameters"]["preconditioner"] is None


def test_seeds_move_at_every_depth() -> None:
    probe = registry.parse_probe("cg[seed=2,preconditioner=cg[seed=3,preconditioner=kfac]]")
    moved = probe.reseeded(lambda seed: 10 * seed + 1)
    assert moved.label == "cg[seed=21,preconditioner=cg[seed=31,preconditioner=kfac[seed=1]]]"
    assert registry.probe("adam").reseeded(lambda seed: seed + 1) == registry.probe("adam")


def test_a_users_file_within_a_probe_has_any_path(mine: Path) -> None:
    """Brackets, commas, quotes, equal signs and lines; and texts with the signs of the grammar."""
    inner = registry.parse_probe(f"{mine}:MyProbe[damping=1e-2,name_of=a\\, \\[b\\] = \\\\ c]")
    assert inner.hyperparameters["name_of"] == "a, [b] = \\ c"
    for probe in (inner, registry.parse_probe(f"{mine}:MyProbe")):
        outer = registry.probe("cg", preconditioner=probe, iterations=3)
        deeper = registry.probe("cg", preconditioner=outer)
        for component in (probe, outer, deeper):
            assert registry.parse_probe(registry.selector(component)) == component
    with pytest.raises(ValueError, match="cg: preconditioner: no probe 'Yours' in"):
        registry.probe("cg", preconditioner=f"{mine}:Yours")


def test_a_users_probe_describes_itself_as_far_as_it_says(mine: Path) -> None:
    """Without ``about`` and without meanings the fields are there: from the docstring, or empty."""
    described = registry.describe("mine", type(registry.parse_probe(f"{mine}:MyProbe")))
    assert described["description"] == described["represents"] == "Mine."
    assert (described["damping"], described["cost"], described["source"], described["errata"]) == ("", {}, "", [])
    assert described["fisher"] == {"default": None, "types": []}
    assert described["hyperparameters"]["rank"] is None and described["meanings"]["rank"] == ""
    assert described["allowed"] | {"updates": ""} == {
        "damping": "a number",
        "rank": "an integer or none",
        "kind": "a or b",
        "exact": "true or false",
        "name_of": "a text",
        "updates": "",
    }


@pytest.mark.parametrize(
    ("entry", "ids"), [("E-L1", ["E-L1"]), ("E-Q", [f"E-Q{k}" for k in range(1, 7)]), ("Eq. 3 lacks a sign", [""])]
)
def test_errata_are_ids_papers_or_texts(entry: str, ids: list[str]) -> None:
    class Wrong(registry.probes()["kfac"]):  # type: ignore[misc]
        """Wrong."""

        about = About(errata=(entry,))

    errata = registry.describe("wrong", Wrong)["errata"]
    assert [erratum["id"] for erratum in errata] == ids
    assert all(erratum["text"] for erratum in errata) and ("" not in ids or errata[0]["text"] == entry)


def test_meanings_end_with_the_next_field_or_the_paragraph() -> None:
    @dataclass(frozen=True)
    class Told(Component):
        """First line.

        ``alpha``: of ``beta`` and
        more; ``beta``: the ``other``: one.

        ``other`` is no field, and this belongs to none.
        """

        alpha: float = 1.0
        beta: float = 2.0
        gamma: float = 3.0

    entries = registry.describe("told", Told)
    assert entries["meanings"] == {"alpha": "of ``beta`` and more", "beta": "the ``other``: one", "gamma": ""}
    assert "represents" not in entries


def test_a_user_component_is_unpickled_in_another_process(mine: Path) -> None:
    content = pickle.dumps(registry.parse_probe(f"{mine}:MyProbe[damping=0.5]"))
    program = (
        "import pickle, sys; from curvbench.registry import load_file; load_file(sys.argv[1]);"
        "print(pickle.loads(bytes.fromhex(sys.argv[2])).label)"
    )
    arguments = [sys.executable, "-c", program, str(mine), content.hex()]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "MyProbe[damping=0.5]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kfak", "unknown probe 'kfak': did you mean kfac"),
        ("zzzzzz", "unknown probe 'zzzzzz': known: adafactor, "),
        ("", "unknown probe ''"),
        ("kfac[dampin=1]", "kfac has no hyperparameter 'dampin'; it has fisher_type, mc_samples, "),
        ("kfac[damping=x]", "kfac: damping must be a number, got 'x'"),
        ("kfac[damping=nan]", "kfac: damping must be a number, got 'nan'"),
        ("kfac[mc_samples=1.5]", "kfac: mc_samples must be an integer, got '1.5'"),
        ("kfac[fisher_type=best]", "kfac: fisher_type must be one of type-2, mc, empirical, forward-only, got 'best'"),
        ("kfac[damping]", "expected key=value, got 'damping'"),
        ("kfac[damping=1,damping=2]", "damping is given twice"),
        ("kfac[damping=1", "expected NAME[key=value,...] or FILE.py:CLASS"),
        ("kfac,diag", "expected NAME[key=value,...] or FILE.py:CLASS"),
        ("kfac[damping=-1]", "kfac[damping=-1.0]: damping"),
        ("no/such file.py:MyProbe", "no file"),
        ("no/such/file.py", "expected NAME[key=value,...] or FILE.py:CLASS"),
    ],
)
def test_a_bad_probe_is_one_line(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        registry.parse_probe(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"damping": "1"}, "kfac[damping=1]: damping must be a number, got '1'"),
        ({"damping": True}, "kfac[damping=True]: damping must be a number, got True"),
        ({"mc_samples": 1.0}, "kfac[mc_samples=1.0]: mc_samples must be an integer, got 1.0"),
        ({"dampening": 1.0}, "kfac has no hyperparameter 'dampening'; it has "),
    ],
)
def test_a_bad_keyword_is_one_line(keywords: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        registry.probe("kfac", **keywords)


def test_an_integer_is_a_number() -> None:
    assert registry.probe("kfac", damping=1) == registry.parse_probe("kfac[damping=1]")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("raise RuntimeError('a\\nb')", "RuntimeError: a b"),
        ("import sys; sys.exit(7)", "SystemExit: 7"),
        ("def (", "SyntaxError: "),
        ("import no_such_module_here", "ModuleNotFoundError: "),
        ("x = 1", "no probe 'MyProbe' in "),
        (MINE.replace("MyProbe", "MyProbes"), "did you mean MyProbes?"),
    ],
)
def test_a_bad_file_is_one_line(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(content)
    for _ in range(2):  # nothing half-made stays behind
        with pytest.raises(ValueError, match=re.escape(words)) as caught:
            registry.parse_probe(f"{path}:MyProbe")
        assert "\n" not in str(caught.value)


def suite(folder: Path, name: str, text: str = "SUITE = Suite('t', {'default': Preset([], [])})") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(f"from curvbench.spec import Preset, Suite\n{text}\n")
    return folder / name


def test_a_suite_is_found_with_and_without_py(tmp_path: Path) -> None:
    path = suite(tmp_path, "a suite's name")
    assert registry.load_suite(path)[0] == registry.load_suite(f"{path}.py")[0] == "a suite's name"
    assert registry.load_suite(path)[1].title == "t"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("resnett", "", "did you mean {folder}/resnet (here) or resnet (shipped)?"),
        ("xyz", "", "; here are {folder}/resnet; `curvbench list --suites` shows"),
        ("bare", "suite = 1", "must bind a curvbench.spec.Suite to SUITE, which is not there"),
        ("wrong", "SUITE = {}", "to SUITE, which is of type dict"),
        ("broken", "1 / 0", "ZeroDivisionError: division by zero"),
        ("poor", "SUITE = Suite('t', {})", "a suite needs a preset named 'default'"),
    ],
)
def test_a_bad_suite_is_one_line(
    name: str, text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite(Path("suites"), "resnet")
    if text:
        suite(Path("suites"), name, text)
    with pytest.raises(ValueError, match=re.escape(words.format(folder="suites"))):
        registry.load_suite(f"suites/{name}")


@pytest.mark.parametrize("path", ["", ".", "/", "suites"])
def test_a_folder_is_no_suite(path: str) -> None:
    with pytest.raises(ValueError, match="no suite"):
        registry.load_suite(path)


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("1e-3", float, 1e-3),
        ("inf", float, float("inf")),
        ("3", int, 3),
        ("TRUE", bool, True),
        ("0", bool, False),
        ("none", int | None, None),
        ("None", float | None, None),
        ("3", int | None, 3),
        ("3", Literal[3, "x"], 3),
        ("a=b", str, "a=b"),
    ],
)
def test_values_are_read_as_annotated(text: str, annotation: object, value: object) -> None:
    assert read("x", text, annotation) == value
    assert check("x", value, annotation) == value


@pytest.mark.parametrize(
    ("text", "annotation"), [("none", int), ("yes", bool), ("2", bool), ("", float), ("c", Literal["a"])]
)
def test_values_that_do_not_fit_are_refused(text: str, annotation: object) -> None:
    with pytest.raises(ValueError, match="x must be"):
        read("x", text, annotation)


LACKING = """
from dataclasses import dataclass
import curvbench as cb

@dataclass(frozen=True)
class Half(cb.FisherProbe):
    def update(self, state, batch):
        return None

class Other:
    pass
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Half", "is no probe: it lacks operator, precondition"),
        ("Other", "is no probe: it is no subclass of curvbench.Probe"),
        ("Absent", "no probe 'Absent' in "),
    ],
)
def test_a_class_that_is_no_probe_is_told_what_it_lacks(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "lacking.py").write_text(LACKING)
    with pytest.raises(ValueError, match=re.escape(words)):
        registry.parse_probe(f"{tmp_path / 'lacking.py'}:{name}")
