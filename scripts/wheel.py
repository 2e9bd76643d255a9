"""Builds wheel and sdist, installs the wheel alone into empty environments, and says what it needs.

    python3 scripts/wheel.py                       with this Python
    python3 scripts/wheel.py PYTHON [PYTHON ...]   with each of these

Needs uv and a package registry, and takes 20 seconds for each Python. It fails where the wheel
needs more than jax, optax and numpy, where the sdist lacks a file, or where `import signax` costs
more than `LIMIT` seconds beyond importing jax and optax. (The aim is 0.1; a busy machine triples
what it takes.)
"""

import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 0.3
NUM_ROUNDS = 7
# Not in the sdist: what only a clone has a use for.
ONLY_IN_A_CLONE = (".ci", "uv.lock")
# What the library needs, and what these need in turn.
MAY_BE_THERE = {
    "absl-py", "jax", "jaxlib", "ml-dtypes", "numpy", "opt-einsum", "optax", "scipy",
    "signax-optax", "typing-extensions",
}  # fmt: skip
VOTE = """
import pathlib
import jax, jax.numpy as jnp, signax
tx = signax.signum(0.5, axis_name="workers")
step = jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="workers", out_axes=None)
assert step(jnp.array([[4.0, 1.0], [5.0, 1.0], [jnp.nan, -9.0]])).tolist() == [-0.5, -0.5]
assert "site-packages" in signax.__file__, signax.__file__
assert (pathlib.Path(signax.__file__).parent / "py.typed").exists()
"""
IMPORT = """
import jax, optax, time
start = time.perf_counter()
import signax
print(time.perf_counter() - start)
"""


def main() -> None:
    """Builds once and installs for each Python."""
    pythons = sys.argv[1:] or [sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        _uv("build", "--quiet", "--out-dir", scratch, ROOT)
        _check_sdist(next(scratch.glob("*.tar.gz")))
        for i, python in enumerate(pythons):
            _check_wheel(next(scratch.glob("*.whl")), python, scratch / f"venv-{i}")


def _check_sdist(sdist: Path) -> None:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {name for name in listing.stdout.split("\n") if name and (ROOT / name).is_file()}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    lacking = {name for name in tracked - packed if not name.startswith(ONLY_IN_A_CLONE)}
    _require(not lacking, f"the sdist lacks {sorted(lacking)}")
    print(f"{sdist.name}: {len(packed)} files, all but {' and '.join(ONLY_IN_A_CLONE)}")


def _check_wheel(wheel: Path, python: str, venv: Path) -> None:
    _uv("venv", "--quiet", "--python", python, venv)
    inside = venv / "bin" / "python"
    _uv("pip", "install", "--quiet", "--python", inside, wheel)
    installed = _uv("pip", "list", "--python", inside, "--format=freeze").stdout.split()
    extra = {line.partition("==")[0] for line in installed} - MAY_BE_THERE
    _require(not extra, f"the wheel also installed {sorted(extra)}")
    _run(inside, VOTE)
    train = subprocess.run([venv / "bin" / "signax", "train"], capture_output=True, text=True)
    is_one_line = train.stderr.count("\n") == 1 and "signax[train]" in train.stderr
    _require(train.returncode == 2 and is_one_line, f"`signax train` said: {train.stderr}")
    cost = _cost_of_import(inside)
    jax = next(line for line in installed if line.startswith("jax=="))
    version = _version(inside)
    print(f"{wheel.name}: Python {version}, {jax}, import signax + {cost:.3f} s")
    _require(cost <= LIMIT, f"`import signax` costs {cost:.2f} s beyond jax and optax")


def _cost_of_import(python: Path) -> float:
    """Seconds that `import signax` takes behind `import jax, optax`: median of fresh processes."""
    _run(python, "import signax")  # writes the bytecode
    return statistics.median(float(_run(python, IMPORT)) for _ in range(NUM_ROUNDS))


def _run(python: Path, code: str) -> str:
    command = [python, "-I", "-c", code]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120)
    return done.stdout


def _version(python: Path) -> str:
    done = subprocess.run([python, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[1]


def _uv(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "uv", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    _require(done.returncode == 0, f"{' '.join(command)} failed: {done.stderr}")
    return done


def _require(holds: bool, message: str) -> None:
    if not holds:
        sys.exit(f"scripts/wheel.py: {message}")


if __name__ == "__main__":
    main()
