"""The house rules of docs/architecture.md, read from the source: arrows, doors, sizes, docstrings.

Every rule is a function from a parsed file to the lines that break it, so files that appear later are
covered, and `test_rules_see_their_own_breach` shows each rule a breach that it must report.
"""

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("avatar_jax", "train", "infer", "configs", "tests", "tools", "examples")
DOORS = ("train", "infer")

# Strict: lower never imports higher. The empty room is avatar_jax/__init__.py, which everything imports.
LEVELS = {
    "": 0,
    "core": 0,
    "kernels": 1,
    "nn": 2,
    "diffusion": 2,
    "models": 3,
    "io": 3,
    "data": 3,
    "stream": 4,
    "metrics": 4,
    "infer": 5,
    "train": 5,
}
# Beyond the levels: diffusion is mathematics on arrays, a run's settings know only the schema and runs they vary.
ALLOWED = {"diffusion": {"core", "diffusion"}, "configs": {"core", "configs"}}
SCHEMA = ("avatar_jax.core.config", "avatar_jax.core.published")  # what a configuration is written in
FORBIDDEN = {"models": {"diffusion"}}
FOREIGN = ("torch", "tensorflow")
# Words that compile, donate or lay out a mesh: only a named door (`make_*`) or a main says them.
DOOR_WORDS = {"jit", "pjit", "pmap", "make_mesh", "set_mesh"}
DOOR_ARGUMENTS = {"donate_argnums", "donate_argnames"}
DOOR_CALLS = {"Mesh", "AbstractMesh"}  # as annotations they are free
FILE_LINES, FUNCTION_LINES, MAIN_LINES = 400, 60, 100

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def files(*rooms: str) -> list[Path]:
    """Every Python file of the given top-level folders, relative to the root."""
    return sorted(path.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py"))


def room_of(module: str) -> str | None:
    """The room of a dotted module: `avatar_jax.nn.rope` -> `nn`, `train.vae` -> `train`; None: not ours."""
    first, _, rest = module.partition(".")
    if first == "avatar_jax":
        return rest.partition(".")[0]
    return first if first in ("train", "infer", "configs", "tests", "tools") else None


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, relative ones resolved; `from a.b import c` is `a.b.c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_imports(path: Path, tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """(line, module, room) of what a file imports from the project; names of avatar_jax itself are free."""
    for line, module in imports(tree, ".".join(path.parent.parts)):
        room = room_of(module)
        if room is not None and not (module.startswith("avatar_jax.__") or module == "avatar_jax"):
            yield line, module, room


def file_room(path: Path) -> str:
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return room_of(module) or ""


def broken_arrows(path: Path, tree: ast.AST) -> Iterator[str]:
    """Imports that climb a level, or that this room may not have at all."""
    here = file_room(path)
    for line, module, room in room_imports(path, tree):
        if here in ALLOWED:
            outside = (here, room) == ("configs", "core") and not module.startswith(SCHEMA)
            wrong = outside or room not in ALLOWED[here]
        else:
            wrong = room in FORBIDDEN.get(here, ()) or LEVELS.get(room, 99) > LEVELS.get(here, -1)
        if wrong:
            yield f"{path}:{line} {here or 'avatar_jax'} must not import {module}"


def foreign_imports(path: Path, tree: ast.AST) -> Iterator[str]:
    """Imports of another framework."""
    for line, module in imports(tree, ""):
        if module.partition(".")[0] in FOREIGN:
            yield f"{path}:{line} imports {module}"


def name_of(node: ast.AST) -> str:
    """The last word of a name or an attribute: `jax.jit` -> `jit`; '' for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def says_door_word(node: ast.AST) -> bool:
    """Whether this very node compiles, donates or builds a mesh."""
    if isinstance(node, ast.Call) and name_of(node.func) in DOOR_CALLS:
        return True
    return name_of(node) in DOOR_WORDS or (isinstance(node, ast.keyword) and node.arg in DOOR_ARGUMENTS)


def stray_doors(path: Path, tree: ast.AST) -> Iterator[str]:
    """Uses of jit, donation or meshes outside `make_*` and `main`."""
    if says_door_word(tree):
        yield f"{path}:{getattr(tree, 'lineno', 0)} {ast.unparse(tree)[:60]} outside make_* and main"
        return
    children = list(ast.iter_child_nodes(tree))
    if isinstance(tree, Function):
        is_door = tree.name == "main" or tree.name.lstrip("_").startswith("make_")
        # A decorator runs outside the function it decorates: `@jax.jit def make_x` is no door.
        children = [*tree.decorator_list, *([] if is_door else tree.body)]
    for child in children:
        yield from stray_doors(path, child)


def oversized(path: Path, tree: ast.AST) -> Iterator[str]:
    """Files and functions past their cap."""
    lines = max((getattr(node, "end_lineno", 0) or 0 for node in ast.walk(tree)), default=0)
    if lines > FILE_LINES:
        yield f"{path} has {lines} lines, {FILE_LINES} at most"
    for node in ast.walk(tree):
        if isinstance(node, Function):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            cap = MAIN_LINES if node.name == "main" else FUNCTION_LINES
            if size > cap:
                yield f"{path}:{node.lineno} {node.name} has {size} lines, {cap} at most"


def noise(path: Path, tree: ast.AST) -> Iterator[str]:
    """Calls of print, and handlers that catch everything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{path}:{node.lineno} print: log with absl or write to a stream"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{path}:{node.lineno} bare except"


def undocumented(path: Path, tree: ast.Module) -> Iterator[str]:
    """Modules, public functions and public classes without a docstring."""
    if not ast.get_docstring(tree):
        yield f"{path}:1 the module has no docstring"
    for node in tree.body:
        named = isinstance(node, Function | ast.ClassDef)
        if named and not node.name.startswith("_") and not ast.get_docstring(node):
            yield f"{path}:{node.lineno} {node.name} has no docstring"


RULES = {
    broken_arrows: ("avatar_jax", *DOORS, "configs"),
    foreign_imports: ("avatar_jax", *DOORS, "configs"),
    stray_doors: ("avatar_jax",),  # train and infer are doors themselves
    oversized: SOURCES,
    noise: ("avatar_jax", *DOORS),
    undocumented: ("avatar_jax",),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule):
    broken = [line for path in files(*RULES[rule]) for line in rule(path, parse(ROOT / path))]
    assert not broken, "\n".join(broken)


def test_every_room_has_a_level():
    rooms = {path.parts[1] if len(path.parts) > 2 else "" for path in files("avatar_jax")}
    assert rooms <= set(LEVELS), f"rooms without a level: {rooms - set(LEVELS)}"


def test_rooms_of_one_level_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in files("avatar_jax", *DOORS):
        here = file_room(path)
        found = {room for _, _, room in room_imports(path, parse(ROOT / path))}
        graph.setdefault(here, set()).update(found - {here})
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle
    assert len(order) >= len(graph)


BREACHES = {
    "avatar_jax/nn/x.py": {
        "from avatar_jax.models import dit": broken_arrows,
        "from avatar_jax import stream": broken_arrows,
        "from ..stream.session import Session": broken_arrows,
        "def f():\n    import train.loop": broken_arrows,
        "import torch.nn as nn": foreign_imports,
        "import jax\n@jax.jit\ndef make_step(x): return x": stray_doors,
        "import jax\ndef step(f): return jax.jit(f, donate_argnums=0)": stray_doors,
        "mesh = jax.make_mesh((8,), ('stage',))": stray_doors,
        "def f():\n" + "    x = 1\n" * 60: oversized,
        "x = 1\n" * 401: oversized,
        "def f(): print('x')": noise,
        "try: pass\nexcept: pass": noise,
        "'''Module.'''\ndef f(x): return x": undocumented,
        "'''Module.'''\nclass A: pass": undocumented,
    },
    "avatar_jax/models/x.py": {"from avatar_jax.diffusion import flow": broken_arrows},
    "avatar_jax/diffusion/x.py": {"from avatar_jax.nn import dense": broken_arrows},
    "configs/x.py": {"from avatar_jax.core import tree": broken_arrows, "import train": broken_arrows},
}
KEPT = {
    "avatar_jax/nn/x.py": "'''M.'''\nfrom avatar_jax import __version__\nfrom .norm import rms\n"
    "from avatar_jax.core.tree import bytes_of\ndef make_step(f):\n    '''Door.'''\n    return jax.jit(f)",
    "avatar_jax/diffusion/x.py": "'''M.'''\nfrom avatar_jax.core.config import Config",
    "configs/x.py": "'''M.'''\nfrom avatar_jax.core.config import Config\nfrom configs import tiny",
    "train/x.py": "'''M.'''\n"
    "from avatar_jax.stream import rollout\ndef main(argv):\n    '''Door.'''\n    jax.jit(argv)",
}


@pytest.mark.parametrize(("place", "source"), [(p, s) for p, sources in BREACHES.items() for s in sources])
def test_rules_see_their_own_breach(place: str, source: str):
    rule = BREACHES[place][source]
    assert list(rule(Path(place), ast.parse(source)))


@pytest.mark.parametrize("place", KEPT)
def test_rules_let_good_code_pass(place: str):
    tree = ast.parse(KEPT[place])
    assert not [line for rule in RULES for line in rule(Path(place), tree)]
