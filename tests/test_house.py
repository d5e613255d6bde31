"""House rules: imports point down and never in a circle, files stay readable, public names stay free for asv."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "curvbench"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FLOORS = {
    0: {"spec", "syntax", "exits", "numerics", "passes", "files", "blocks"},
    1: {
        "tape",
        "layers",
        "convolution",
        "likelihood",
        "checks",
        "contents",
        "verification",
        "instance",
        "operators",
        "fisher",
    }
    | {"data", "photos", "text", "summaries", "download"},
    2: {
        "parts",
        "probes",
        "problems",
        "meters",
        "states",
        "schedules",
        "augmentation",
        "hyperparameters",
        "registry",
    }
    | {"distributed", "launch", "libraries"},
    3: {"optim", "training", "trial", "identity", "measure", "store", "reference", "snapshots"},
    4: {"engines", "analysis", "plot", "selection", "tables", "baselines", "locate", "proposals", "tuning"},
    5: {"display", "doctor", "report", "templates", "runner", "verbs", "cli", "__main__"},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
OF_OWN_PROCESSES = ("curvbench.engines.local", "curvbench.engines.shard", "curvbench.launch")  # may unpickle
PREFIXES = ("time_", "mem_", "peakmem_", "track_")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def runtime_imports(module: str) -> Iterator[str]:
    """Modules of the package that ``module`` imports when it is imported itself."""
    for node in top_level(parse(MODULES[module])):
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


@pytest.mark.parametrize("module", [m for m in MODULES if room(m)])
def test_imports_point_down(module: str) -> None:
    assert room(module) in FLOOR_OF, f"{module} has no floor: give its room one"
    for imported in runtime_imports(module):
        if room(imported) and room(imported) != room(module):
            assert FLOOR_OF[room(imported)] <= FLOOR_OF[room(module)], f"{module} imports {imported} from above"


def test_no_import_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for imported in runtime_imports(module):
                if imported != module:
                    visit(imported, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("package", ["probes", "problems"])
def test_components_never_import_each_other(package: str) -> None:
    for module in MODULES:
        if module.startswith(f"curvbench.{package}."):
            others = [m for m in runtime_imports(module) if m.startswith(f"curvbench.{package}.")]
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


def test_help_does_not_wait_for_torch() -> None:
    """Neither the package nor the command line imports torch at its top."""
    for module in ("curvbench", "curvbench.cli", "curvbench.spec"):
        source = MODULES[module].read_text()
        imported = [n for n in top_level(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert "torch" not in " ".join(ast.unparse(n) for n in imported)


def test_the_extras_are_not_needed() -> None:
    """Only declared dependencies are imported at module level anywhere in the package."""
    declared = {"torch", "numpy", "pandas", "pyarrow", "sklearn", "scipy", "rich", "click", "safetensors"}
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
