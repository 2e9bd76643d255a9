"""The architecture, held by reading the source: who may import whom, and what each name needs."""

import ast
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import signax
from workers import run_python

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "signax"

# In reading order. A room imports only from rooms above it.
ROOMS = (
    "_choices",
    "_alike",
    "_workers",
    "_shards",
    "_reductions",
    "_rows",
    "signs",
    "wire",
    "_coins",
    "_rules",
    "_network",
    "_average",
    "_votes",
    "_scaled",
    "_columns",
    "_memory",
    "_feedback",
    "_differences",
    "_warmup",
    "_freezing",
    "_bypass",
    "_skipping",
    "_local_updates",
    "_optimizers",
    "baselines",
    "_mesh",
    "_specs",
    "_layout",
    "_loss",
    "_worker_step",
    "_step_inputs",
    "_processes",
    "_called_step",
    "_written_last",
    "_training",
    "_elastic",
    "_restoring",
    "_drift",
    "theory",
    "diagnostics",
    "experiments",
)
# What `import signax` must not load; only `signax.experiments` may import it.
HEAVY = ("flax", "matplotlib", "ml_collections", "orbax", "sklearn", "tensorflow_datasets")
LIGHT = ("jax", "jaxlib", "numpy", "optax", "signax")

SOURCES = sorted(PACKAGE.rglob("*.py"))
FACE = PACKAGE / "__init__.py"


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> list[str]:
    """Every module that the file imports, as absolute dotted names, wherever in the file."""
    package = ("signax", *path.relative_to(PACKAGE).parent.parts)
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = [*above, *([node.module] if node.module else [])]
            modules += [".".join([*module, alias.name]) for alias in node.names]
    return modules


def imported_rooms(path: Path) -> set[str]:
    parts = [module.split(".") for module in imported_modules(path)]
    return {p[1] for p in parts if p[0] == "signax" and len(p) > 1}


@pytest.mark.parametrize("path", [p for p in SOURCES if p != FACE], ids=relative)
def test_a_room_imports_only_from_rooms_above_it(path: Path):
    room = room_of(path)
    assert room in ROOMS, f"{path.name} lies in no room of the house: {ROOMS}"
    for other in imported_rooms(path) & set(ROOMS):
        assert ROOMS.index(other) <= ROOMS.index(room), f"{room} imports {other}, a room below it"


@pytest.mark.parametrize("path", [p for p in SOURCES if p != FACE], ids=relative)
def test_a_module_never_imports_the_public_face(path: Path):
    if room_of(path) != "experiments":  # a user of the library, so it takes the door users take
        assert not imported_rooms(path) & ({*signax.__all__} - {*ROOMS})
        assert "signax" not in imported_modules(path)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_experiments_import_more_than_jax_numpy_and_optax(path: Path):
    outside = {module.split(".")[0] for module in imported_modules(path)}
    allowed = {*LIGHT, *sys.stdlib_module_names}
    assert outside <= allowed or room_of(path) == "experiments", outside - allowed


def test_import_signax_loads_none_of_the_heavy_libraries():
    code = f"import sys, signax; print(sorted({set(HEAVY)} & set(sys.modules)))"
    assert run_python(code).stdout == "[]\n"


def test_all_is_sorted_and_complete():
    public = {
        name
        for name, value in vars(signax).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    modules = {name for name in ROOMS if name in signax.__all__}
    assert list(signax.__all__) == sorted(signax.__all__)
    assert set(signax.__all__) == public | modules


@pytest.mark.parametrize("name", signax.__all__)
def test_every_public_name_has_a_docstring_of_its_own(name: str):
    value = getattr(signax, name)
    assert inspect.getdoc(value), f"signax.{name} has no docstring"
    assert not (inspect.getdoc(value) or "").startswith(f"{name}("), f"signax.{name}: generated"


def test_every_public_name_has_exactly_one_import_path():
    """Modules below the face are private (`_x.py`), or rooms whose names the face leaves alone."""
    for path in SOURCES:
        room, name = room_of(path), path.stem
        if path == FACE or room == "experiments" or name == "__init__":
            continue
        assert name.startswith("_") or name in signax.__all__, f"{path.name}: a second import path"
    for room in ("signs", "wire"):
        if (PACKAGE / room / "__init__.py").exists():
            tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
            assert not any(isinstance(n, ast.Import | ast.ImportFrom) for n in tree.body), (
                f"signax/{room}/__init__.py re-exports names: each has one path, signax.<name>"
            )


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():  # an unpacked sdist: whatever is neither hidden nor bytecode
        hidden = re.compile(r"^(\.|__pycache__)")
        relatives = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return [ROOT / path for path in relatives if not any(map(hidden.match, path.parts))]
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_file_names_a_machine_or_leaves_work_undone():
    # Spelled in pieces, so that this file does not hold what it looks for.
    unwanted = re.compile(rb"(?<!\w)/(?:home|root|Users|work)/\w|\bTO" + rb"DO\b|FIX" + rb"ME")
    for path in tracked_files():
        if path.name != "uv.lock" and path.suffix != ".png":
            found = unwanted.search(path.read_bytes())
            assert not found, f"{path.relative_to(ROOT)}: {found and found.group().decode()}"
