"""House rules: imports point down and never in a circle, files stay readable, public names stay free for asv."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "curvbench"
TEMPLATES = PACKAGE / "cli" / "templates"  # files of users, which nothing in the package imports
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if TEMPLATES not in path.parents
}
MAP = re.search(r"The map of the house.*?::\n\n(.*?)\n\n", (PACKAGE / "spec" / "__init__.py").read_text(), re.DOTALL)
OF_OWN_PROCESSES = ("curvbench.engines.local", "curvbench.engines.shard", "curvbench.cells.launch")  # may unpickle
PREFIXES = ("time_", "mem_", "peakmem_", "track_")


AT_THE_ROOT = {path.stem for path in PACKAGE.glob("*.py")}


def floors() -> dict[str, int]:
    """The floor of every room, as the map in the contracts draws it: entries stand two spaces or more apart."""
    assert MAP is not None
    drawn, floor = {}, -1
    for line in MAP[1].splitlines():
        first, *others = re.split(r"\s{2,}", line.strip())
        floor = int(first) if first.isdigit() else floor
        drawn |= {entry: floor for entry in (first, *others) if (PACKAGE / entry).is_dir() or entry in AT_THE_ROOT}
    return drawn


FLOOR_OF = floors()


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(module: str, types: bool) -> Iterator[str]:
    """Modules of the package that the file of ``module`` imports at its top; those of annotations too, if ``types``."""
    for node in ast.walk(parse(MODULES[module])) if types else top_level(parse(MODULES[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("curvbench"):
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield deeper if deeper in MODULES else node.module


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node


def test_the_map_has_every_room() -> None:
    rooms = {room(module) for module in MODULES if room(module)}
    assert rooms - {"__main__"} == set(FLOOR_OF)
    assert len([path for path in PACKAGE.glob("*.py")]) <= 4, "at most four modules at the root"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in ("", "__main__", "spec")])
def test_imports_point_down(module: str) -> None:
    for imported in imports(module, types=True):
        if room(imported) and room(imported) != room(module):
            assert FLOOR_OF[room(imported)] <= FLOOR_OF[room(module)], f"{module} imports {imported} from above"


def test_contracts_import_nothing_but_types() -> None:
    """The contracts name what stands above them in annotations alone, and torch not at all at run time."""
    for module in (module for module in MODULES if room(module) == "spec"):
        assert {room(imported) for imported in imports(module, types=False)} <= {"spec"}, module


@pytest.mark.parametrize("types", [False, True])
def test_no_import_circle(types: bool) -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for imported in imports(module, types):
                if imported != module:
                    visit(imported, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_no_file_bears_the_name_of_a_public_function() -> None:
    """``curvbench.fit`` is a function; a file of that name would take its place when it is imported."""
    package = importlib.import_module("curvbench")
    functions = {name for name in package.__all__ if callable(getattr(package, name))} | {"measure", "cost"}
    assert functions.isdisjoint(path.stem for path in PACKAGE.iterdir())
    for face in (module for module, path in MODULES.items() if path.name == "__init__.py"):
        named = importlib.import_module(face)
        files = {module.rpartition(".")[2] for module in MODULES if module.rpartition(".")[0] == face}
        assert not [name for name in files & set(vars(named)) if not isinstance(vars(named)[name], ModuleType)], face


@pytest.mark.parametrize("package", ["probes", "problems"])
def test_components_never_import_each_other(package: str) -> None:
    for module in MODULES:
        if module.startswith(f"curvbench.{package}."):
            others = [m for m in imports(module, types=False) if m.startswith(f"curvbench.{package}.")]
            assert not others, f"{module} imports {others}"


@pytest.mark.parametrize("module", MODULES)
def test_no_public_name_looks_like_an_asv_benchmark(module: str) -> None:
    tree = parse(MODULES[module])
    names = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert not [name for name in names if name.startswith(PREFIXES)]


def test_probes_are_short() -> None:
    """What a probe says of its method (``about``) is no code."""
    lines = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE / "probes").glob("*.py")}
    for path in (PACKAGE / "probes").glob("*.py"):
        abouts = [
            n for n in ast.walk(parse(path)) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "about"
        ]
        lines[path.name] -= sum((n.end_lineno or 0) - n.lineno + 1 for n in abouts)
    assert {name: count for name, count in lines.items() if count > 130} == {}


def test_only_the_store_touches_parquet() -> None:
    users = [m for m, path in MODULES.items() if re.search(r"\bpyarrow\b|to_parquet|read_parquet", path.read_text())]
    assert {module.rpartition(".")[0] for module in users} == {"curvbench.store"}


def test_only_reports_and_the_command_line_draw_on_a_terminal() -> None:
    users = {room(m) for m, path in MODULES.items() if re.search(r"^\s*(from|import) rich\b", path.read_text(), re.M)}
    assert users == {"report", "cli"}


def test_help_does_not_wait_for_torch() -> None:
    """Neither the package nor the command line imports torch at its top."""
    for module in ("curvbench", "curvbench.cli.app", *(m for m in MODULES if room(m) == "spec")):
        source = MODULES[module].read_text()
        imported = [n for n in top_level(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert "torch" not in " ".join(ast.unparse(n) for n in imported)


def test_the_extras_are_not_needed() -> None:
    """Only declared dependencies are imported at module level anywhere in the package."""
    declared = {"torch", "numpy", "pandas", "pyarrow", "sklearn", "scipy", "rich", "click", "safetensors", "filelock"}
    declared |= {"curvbench"}
    for module, path in MODULES.items():
        for node in top_level(parse(path)):
            roots = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            roots += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in (root.split(".")[0] for root in roots):
                spec = importlib.util.find_spec(name)
                third_party = spec is not None and "site-packages" in (spec.origin or "")
                assert not third_party or name in declared, f"{module} imports {name}"


def test_nothing_from_outside_is_unpickled_or_evaluated() -> None:
    """Pickles are what engines send their own processes; torch's files hold tensors and plain values alone."""
    for module, path in MODULES.items():
        for call in (node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if name == "torch.load":
                assert "weights_only=True" in ast.unparse(call), f"{module} unpickles"
            if name in ("pickle.loads", "pickle.load"):
                assert module in OF_OWN_PROCESSES, f"{module} unpickles"
            if name == "np.load":
                assert "allow_pickle=False" in ast.unparse(call), f"{module} unpickles"
            assert name not in ("eval", "exec", "pd.read_pickle"), f"{module} calls {name}"
