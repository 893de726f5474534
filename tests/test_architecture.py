"""The structure of the code: import order, sizes, and the tables that documents repeat."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lrp_jax.core import primitives
from lrp_jax.rules import kinds

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lrp_jax"
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()
LISTED = [
    line.split()[0] for line in re.findall(r"<!-- import order -->\n```\n(.*?)```", DOCUMENT, re.DOTALL)[0].splitlines()
]


def module(path: Path) -> str:
    """`rules.kinds` for lrp_jax/rules/kinds.py, `rules` for lrp_jax/rules/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "lrp_jax"


FILES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def place(name: str) -> int:
    """The place of a module in the list: its own, or that of its package if this is listed with a slash."""
    return LISTED.index(name if name in LISTED else f"{name.split('.')[0]}/")


def imported(name: str) -> set[str]:
    """The modules of this package that a module imports, also inside functions, and for types."""
    tree = ast.parse(FILES[name].read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] == "lrp_jax")
        elif isinstance(node, ast.ImportFrom) and node.level:  # relative, in `reference` only
            found.update(f"lrp_jax.{name.split('.')[0]}.{node.module or alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lrp_jax":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(n if n.removeprefix("lrp_jax.") in FILES else str(node.module) for n in names)
    return {n.removeprefix("lrp_jax.") for n in found}


@pytest.mark.parametrize("name", FILES)
def test_modules_import_only_what_is_above_them_in_the_documented_order(name):
    for other in imported(name):
        assert other in FILES, f"{name} imports {other}, which is not a module"
        if name.split(".")[0] == other.split(".")[0] and f"{name.split('.')[0]}/" in LISTED:
            continue  # inside one package: see the next test
        assert place(other) < place(name), f"{name} imports {other}, which is below it in docs/architecture.md"


def test_there_is_no_circle():
    graph = {name: imported(name) for name in FILES}
    done: list[str] = []

    def visit(name: str, way: tuple[str, ...] = ()) -> None:
        assert name not in way, f"a circle: {' -> '.join([*way, name])}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*way, name))
            done.append(name)

    for name in graph:
        visit(name)


def test_every_module_is_listed_once():
    assert len(set(LISTED)) == len(LISTED)
    for name in FILES:
        assert FILES[name].read_text().count("import ") == 0 or place(name) >= 0
    for name in LISTED:
        assert name.rstrip("/") in FILES, f"docs/architecture.md lists {name}, which does not exist"


@pytest.mark.parametrize("name", FILES)
def test_files_have_at_most_400_lines_and_functions_fit_a_screen(name):
    text = FILES[name].read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
            assert node.end_lineno is not None
            assert node.end_lineno - start <= 60, f"{node.name} has {node.end_lineno - start} lines"


def test_only_one_module_reaches_below_the_public_interface_of_jax():
    for name, path in FILES.items():
        if name != "core.compat":
            assert not re.search(r"\bjax\._src|(?<!lrp_)jax\.__version__", path.read_text()), name


def test_the_package_needs_only_jax_and_numpy():
    code = "import sys, lrp_jax; print(*{m.split('.')[0] for m in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"flax", "matplotlib", "PIL", "safetensors", "tqdm", "h5py", "optax", "jaxtyping"} & set(found)


def test_the_readme_has_the_table_of_kinds():
    readme = (ROOT / "README.md").read_text()
    assert f"<!-- kinds -->\n{kinds.table()}\n<!-- /kinds -->" in readme, "run `python docs/kinds.py`"


def test_the_tables_agree_with_each_other():
    assert primitives.MOVES.isdisjoint(kinds.KINDS)
    for row in kinds.KINDS.values():
        assert row.rule is None or row.suits(row.rule), row.name
    for name in primitives.MOVES:
        assert kinds.kind_of(name).suits(kinds.kind_of(name).rule)
    elementwise = primitives.Trait.SMOOTH | primitives.Trait.PIECEWISE | primitives.Trait.EXPONENTIAL
    for name, row in primitives.PRIMITIVES.items():
        assert not row.traits & elementwise or row.traits & primitives.Trait.ELEMENTWISE, name
        assert not row.traits & primitives.Trait.REARRANGE or row.traits & primitives.Trait.MOVE, name
