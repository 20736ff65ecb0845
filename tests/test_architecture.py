"""The shape of the house: who may import whom, what no file may do, and what importing the package costs."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "halfseen"
FILES = sorted(PACKAGE.rglob("*.py"))

GROUND = {"errors", "types", "idle", "ops"}
LOWER = {"data", "engine", "backbones", "config", "ops"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "idle": set(),
    "ops": {"types", "errors", "ops"},
    "masking": GROUND | {"masking"},
    "targets": GROUND | {"targets"},
    "backbones": GROUND | {"backbones"},
    "data": GROUND | {"data"},
    "engine": GROUND | {"engine"},
    "config": {"errors", "idle", "config"},
    "reports": {"errors", "reports"},
    "recipes": set(),
    "methods": GROUND | {"masking", "targets", "backbones", "methods.base", "methods.guide"},
    "methods.table": GROUND | {"masking", "targets", "backbones", "methods"},
    "evaluation": GROUND | LOWER | {"evaluation"},
    "analysis": GROUND | {"evaluation.features", "methods.table", "methods.base", "backbones", "data", "analysis"},
    "pretraining": GROUND | LOWER | {"methods", "evaluation", "analysis", "reports", "pretraining"},
    "opening": GROUND | LOWER | {"evaluation", "reports", "pretraining"},
    "evaluate": GROUND | LOWER | {"evaluation", "pretraining", "opening"},
    "cli": GROUND
    | LOWER
    | {"methods", "evaluation", "analysis", "reports", "pretraining", "opening", "evaluate", "cli"},
}
"""Part of the package -> parts that it may import. A dotted name is one module, stronger than its folder."""


class Import(NamedTuple):
    """One import of the package by itself: the importing and the imported module, both without `halfseen.`."""

    by: str
    of: str
    line: int
    lazy: bool


def module_name(path: Path) -> str:
    """`engine.loop` for src/halfseen/engine/loop.py; the package's own `__init__` is the empty string."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported_modules(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(full dotted name, line, inside a function) of all imports of a file, those inside functions too.

    `from halfseen.engine import loop` counts as `halfseen.engine.loop` if that is a module.
    """
    top = {id(node) for node in tree(path).body}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in top
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = path.relative_to(PACKAGE.parent).with_suffix("").parts[: -node.level]
                base = ".".join((*above, base)).rstrip(".")
            for alias in node.names:
                deeper = PACKAGE.parent.joinpath(*base.split("."), alias.name)
                is_module = deeper.with_suffix(".py").is_file() or (deeper / "__init__.py").is_file()
                yield f"{base}.{alias.name}" if is_module else base, node.lineno, id(node) not in top


def own_imports() -> list[Import]:
    return [
        Import(module_name(path), name.removeprefix("halfseen").removeprefix("."), line, lazy)
        for path in FILES
        for name, line, lazy in imported_modules(path)
        if name == "halfseen" or name.startswith("halfseen.")
    ]


def allowed(by: str, of: str) -> bool:
    """Whether the module `by` may import the module `of`."""
    rule = MAY_IMPORT.get(by) or MAY_IMPORT[by.split(".")[0]]
    steps = of.split(".")
    return any(".".join(steps[: length + 1]) in rule for length in range(len(steps)))


def test_the_table_names_every_part_of_the_package() -> None:
    parts = {module_name(path).split(".")[0] for path in FILES} - {"", "__main__"}
    assert parts - MAY_IMPORT.keys() == set()


def test_imports_only_flow_downwards() -> None:
    offences = [
        f"{edge.by}:{edge.line} imports {edge.of}"
        for edge in own_imports()
        if edge.by not in ("", "__main__") and not allowed(edge.by, edge.of)
    ]
    assert offences == []


@pytest.mark.parametrize(
    ("by", "of"),
    [
        ("methods.mae", "methods.kamim"),
        ("methods.mae", "data.sources"),
        ("methods.mae", "engine.loop"),
        ("engine.loop", "methods.base"),
        ("engine.loop", "data.loader"),
        ("evaluation.knn.votes", "methods.table"),
        ("analysis.reconstruct", "evaluation.knn.votes"),
        ("reports.page", "types"),
        ("ops.losses", "masking.random"),
        ("backbones.vit", "masking.random"),
        ("pretraining.run", "cli.main"),
    ],
)
def test_the_table_forbids_what_it_should(by: str, of: str) -> None:
    assert not allowed(by, of)


def test_nobody_imports_the_package_itself() -> None:
    assert [f"{edge.by}:{edge.line}" for edge in own_imports() if edge.of == "" and edge.by != "__main__"] == []


def test_no_import_cycles() -> None:
    """Not even through functions, except inside a folder, where an opener may import what it opens when asked to."""
    edges: dict[str, set[str]] = {}
    for edge in own_imports():
        if not edge.lazy or edge.by.split(".")[0] != edge.of.split(".")[0]:
            edges.setdefault(edge.by, set()).add(edge.of)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module in done:
            return
        for below in edges.get(module, ()):
            visit(below, (*trail, module))
        done.add(module)

    for module in list(edges):
        visit(module, ())


def test_init_files_of_folders_are_empty() -> None:
    full = [path for path in PACKAGE.glob("*/**/__init__.py") if path.read_text().strip()]
    assert full == []


def test_commands_import_the_library_only_when_chosen() -> None:
    """What makes `halfseen --help` instant: in `cli` all but light modules are imported inside functions."""
    light = {"errors", "cli", "config", "opening"}
    eager = [
        f"{edge.by}:{edge.line} imports {edge.of}"
        for edge in own_imports()
        if edge.by.startswith("cli") and not edge.lazy and edge.of.split(".")[0] not in light
    ]
    assert eager == []


def test_no_house_for_strays() -> None:
    strays = {"utils.py", "util.py", "misc.py", "common.py", "helpers.py", "helper.py", "tools.py", "functions.py"}
    assert [path for path in FILES if path.name in strays] == []


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name as written, node) of every call in a file whose function is a plain dotted name or a method."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def places(forbidden: str) -> list[str]:
    """file:line of the calls whose dotted name matches the pattern to its end."""
    pattern = re.compile(forbidden)
    return [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        for path in FILES
        for name, node in calls(path)
        if pattern.fullmatch(name)
    ]


def test_only_the_command_line_and_the_terminal_print() -> None:
    speaking = ("src/halfseen/cli/", "src/halfseen/engine/terminal.py")
    assert [place for place in places("print") if not place.startswith(speaking)] == []


def test_no_device_is_assumed() -> None:
    assert places(r".*\.cuda") == []


SEEDING = (
    "torch.manual_seed",
    "torch.cuda.manual_seed",
    "torch.mps.manual_seed",
    "torch.default_generator.manual_seed",
)


def test_no_hidden_random_state() -> None:
    assert places(r"(np|numpy)\.random\.(seed|rand|randn|randint|permutation|shuffle|choice|uniform|normal)") == []
    assert places(r"random\.(seed|random|randint|shuffle|choice|uniform|sample|gauss)") == []
    assert places(r"torch\.seed|torch\.random\.manual_seed|torch\.cuda\.manual_seed_all") == []
    seeding = [path for path in FILES if any(name in SEEDING for name, _ in calls(path))]
    unforked = [path for path in seeding if not any(name.endswith("fork_rng") for name, _ in calls(path))]
    assert unforked == [], "torch's global state is seeded inside torch.random.fork_rng only"


def safe_loaders(path: Path) -> set[str]:
    """The classes of a file that are built on yaml.SafeLoader."""
    classes = (node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef))
    return {node.name for node in classes if [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]}


def keyword_value(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def test_strangers_files_cannot_run_code() -> None:
    """No unpickling: torch.load is always weights_only, np.load never allows pickles, nobody calls an unpickler."""
    for path in FILES:
        where = path.relative_to(ROOT)
        for name, _, _ in imported_modules(path):
            assert name.split(".")[0] not in {"dill", "cloudpickle", "joblib", "shelve", "marshal"}, where
        for name, call in calls(path):
            assert not re.fullmatch(r"_?pickle\.loads?|.*Unpickler", name), f"{where}:{call.lineno}"
            if name in ("torch.load", "torch.serialization.load"):
                assert keyword_value(call, "weights_only") == "True", f"{where}:{call.lineno}"
            if name in ("np.load", "numpy.load"):
                assert keyword_value(call, "allow_pickle") in (None, "False"), f"{where}:{call.lineno}"
            if name in ("yaml.load", "yaml.load_all"):
                assert keyword_value(call, "Loader") in safe_loaders(path), f"{where}:{call.lineno}"
            assert name not in ("eval", "exec", "yaml.unsafe_load", "os.system"), f"{where}:{call.lineno}"


def test_nothing_is_left_unfinished() -> None:
    unfinished = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"\bTODO\b|\bFIXME\b|\bXXX\b|NotImplementedError", line)
    ]
    assert unfinished == []


DISTRIBUTIONS = {"cv2": "opencv-python-headless", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
COMES_WITH = {
    "click": "typer",
    "annotated_types": "pydantic",
    "pydantic_core": "pydantic",
    "torch_xla": "torch",  # Where there is a TPU its own image brings it; pip can't choose it for a machine.
}


def test_the_package_declares_what_it_imports() -> None:
    """Imports at the top of a file need a core dependency, those inside functions at least an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {re.split(r"[<>=!\[ ]", line)[0] for line in project["dependencies"]}
    extras = project["optional-dependencies"]
    users = {re.split(r"[<>=!\[ ]", line)[0] for name in extras if name not in ("dev", "docs") for line in extras[name]}
    undeclared, seen = [], set()
    for path in FILES:
        for name, line, lazy in imported_modules(path):
            root = name.split(".")[0]
            if root in sys.stdlib_module_names or root == "halfseen":
                continue
            distribution = COMES_WITH.get(root, DISTRIBUTIONS.get(root, root))
            seen.add(distribution)
            if distribution not in (core | users if lazy else core):
                undeclared.append(f"{path.relative_to(ROOT)}:{line} imports {root}")
    assert undeclared == []
    assert core - seen == set(), "declared as a core dependency but imported nowhere"


IMPORT_WITHOUT_TRACE = """
import logging, os, random, sys, warnings
before = (dict(os.environ), list(sys.path), random.getstate(), list(warnings.filters), logging.getLogger().level,
          list(logging.getLogger().handlers), os.getcwd(), sys.excepthook)
import halfseen
after = (dict(os.environ), list(sys.path), random.getstate(), list(warnings.filters), logging.getLogger().level,
         list(logging.getLogger().handlers), os.getcwd(), sys.excepthook)
assert before == after
heavy = {"torch", "timm", "numpy", "cv2", "matplotlib", "sklearn", "pydantic"} & sys.modules.keys()
assert not heavy, heavy
missing = [name for name in halfseen.__all__ if getattr(halfseen, name, None) is None]
assert not missing, missing
"""


def test_importing_the_package_is_light_and_changes_nothing() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_WITHOUT_TRACE], check=True)


IMPORT_ALL = """
import importlib, pkgutil, numpy, torch
import halfseen
torch.manual_seed(5), numpy.random.seed(5)
before = (torch.random.get_rng_state().sum(), numpy.random.get_state()[2], torch.get_num_threads(),
          torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark)
for module in pkgutil.walk_packages(halfseen.__path__, "halfseen."):
    if module.name != "halfseen.__main__":
        importlib.import_module(module.name)
after = (torch.random.get_rng_state().sum(), numpy.random.get_state()[2], torch.get_num_threads(),
         torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark)
assert before == after, (before, after)
"""


def test_every_module_can_be_imported_alone_and_leaves_torch_as_it_was() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True)
