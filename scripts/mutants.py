"""Mutation testing: breaks one thing at a time in the library's core; does a test notice?

    python3 -m uv run --with cosmic-ray scripts/mutants.py --share=0.25

Cosmic Ray finds the places and makes the mutants: another operator, another comparison, a number
one off, a condition turned round. Each is written into a copy of this repository, where the tests
of its module run until the first fails. A mutant under which all of them pass has survived: either
a test is missing, or nothing that a user could see has changed. `scripts/survivors.toml` lists
those of the second kind, each with its reason; any other is marked SURVIVED, and the exit status
is 1.

One process imports the test tools and forks a child for each mutant, before JAX has started a
thread; children share a cache of compiled programs. A mutant then takes seconds, not a minute, and
the whole (--share=1) some hours on two cores.
"""

import argparse
import collections
import contextlib
import importlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# The tests of each module, those that fail soonest first.
TESTS = {
    "signax/_alike.py": "alike votes",
    "signax/_reductions.py": "reductions sign scales leaving_signs",
    "signax/_rows.py": "bits votes",
    "signax/signs/_sign.py": "sign columns stochastic votes workers_types arguments leaving_signs"
    " types differences sharded_links sharded",
    "signax/signs/_random.py": "random stochastic stochastic_link columns",
    "signax/signs/_stochastic.py": "stochastic stochastic_link ssdm workers_types arguments"
    " leaving_signs types",
    "signax/signs/_noisy.py": "leaving_signs workers_types arguments optimizers types",
    "signax/signs/_norms.py": "scales stochastic leaving_signs sharded_links",
    "signax/signs/_scales.py": "scales leaving_signs stochastic stochastic_link workers_types"
    " arguments types sharded_links sharded",
    "signax/wire/_ballot.py": "votes feedback",
    "signax/wire/_bits.py": "bits votes",
    "signax/wire/_contiguous.py": "contiguous bits votes",
    "signax/wire/_cost.py": "hlo wire_cost",
    "signax/wire/_hlo.py": "hlo_text hlo wire_cost",
    "signax/wire/_dealing.py": "sharded_wire sharded_links sharded sharded_runs",
    "signax/wire/_owners.py": "owners wire_cost",
    "signax/wire/_server.py": "votes hlo wire_cost feedback family",
    "signax/wire/_radix.py": "radix votes",
    "signax/wire/_slices.py": "slices feedback family",
    "signax/_network.py": "votes hard_inputs",
    "signax/_average.py": "average votes hard_inputs",
    "signax/_votes.py": "votes vote_coins hard_inputs owners types sharded",
    "signax/_memory.py": "memory arguments hard_inputs optimizers",
    "signax/_loss.py": "loss_functions losses training",
    "signax/_training.py": "training losses step_inputs drift sharded",
}

# One or two of Cosmic Ray's replacements for each kind of thing: the others break more, and are
# noticed wherever these are.
OPERATORS = (
    "NumberReplacer",
    "AddNot",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ZeroIterationForLoop",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_USub",
    "ReplaceUnaryOperator_Delete_Invert",
    "ReplaceComparisonOperator_Eq_NotEq",
    "ReplaceComparisonOperator_NotEq_Eq",
    "ReplaceComparisonOperator_Is_IsNot",
    "ReplaceComparisonOperator_IsNot_Is",
    "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_Gt_GtE",
    "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceBinaryOperator_Add_Sub",
    "ReplaceBinaryOperator_Sub_Add",
    "ReplaceBinaryOperator_Mul_Add",
    "ReplaceBinaryOperator_Div_Mul",
    "ReplaceBinaryOperator_FloorDiv_Mul",
    "ReplaceBinaryOperator_Mod_Add",
    "ReplaceBinaryOperator_Pow_Mul",
    "ReplaceBinaryOperator_BitAnd_BitOr",
    "ReplaceBinaryOperator_BitOr_BitAnd",
    "ReplaceBinaryOperator_BitXor_BitOr",
    "ReplaceBinaryOperator_LShift_RShift",
    "ReplaceBinaryOperator_RShift_LShift",
)
TIME_LIMIT = 1200  # seconds for one mutant; the first run of all compiles everything


class Mutant(NamedTuple):
    """One changed line of one module."""

    module: str
    number: int  # of the line
    line: str
    mutant: str
    source: str  # of the whole module, changed

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is, wherever in the module the line stands."""
        return self.module, self.line, self.mutant


def mutants_of(module: str) -> Iterator[Mutant]:
    """All that the operators make of a module."""
    # Only this script needs it, so it is no dependency of the project.
    from cosmic_ray import mutating, plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    source = (ROOT / module).read_text()
    for name in OPERATORS:
        operator = plugins.get_operator(f"core/{name}")()
        occurrences = sum(
            len(list(operator.mutation_positions(node))) for node in ast_nodes(get_ast(source))
        )
        for occurrence in range(occurrences):
            changed = mutating.mutate_code(source, operator, occurrence)
            lines = zip(source.splitlines(), changed.splitlines(), strict=True)
            number, (before, after) = next(
                (i, pair) for i, pair in enumerate(lines, 1) if pair[0] != pair[1]
            )
            is_union_type = "BitOr" in name and "| None" in before
            is_for_the_reader = before.replace("strict=True", "strict=False") == after  # of zip
            if not is_union_type and not is_for_the_reader:
                yield Mutant(module, number, before.strip(), after.strip(), changed)


def copy_of_repository(folder: Path) -> Path:
    """The files that git knows, changed as they are here."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run_tests(folder: Path, module: str, log: Path) -> int:
    """In a forked child: pytest's exit status for the tests of a module, in this copy."""
    import pytest

    signal.alarm(TIME_LIMIT)
    os.chdir(folder)
    sys.path[:0] = [str(folder)]
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        files = [f"tests/test_{name}.py" for name in TESTS[module].split()]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="]
        # Some tools are imported before pytest could look at them.
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        return int(pytest.main([*options, "-m", "not slow and not thorough", *files]))


def in_child(folder: Path, mutant: Mutant) -> int:
    """Forks a child that runs the tests of the mutant's module with the mutant in its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # JAX warns; it has no thread yet
        child = os.fork()
    if child:
        return child
    status = 2
    try:
        (folder / mutant.module).write_text(mutant.source)
        status = run_tests(folder, mutant.module, folder / "log.txt")
    finally:
        os._exit(status)


def outcomes(
    mutants: Iterator[Mutant], folders: list[Path]
) -> Iterator[tuple[Mutant, int, float, str]]:
    """Yields (mutant, wait status, seconds, what was printed) as children end."""
    running, free = {}, list(folders)
    while True:
        while free and (item := next(mutants, None)):
            folder = free.pop()
            running[in_child(folder, item)] = item, folder, time.monotonic()
        if not running:
            return
        child, status = os.wait()
        item, folder, start = running.pop(child)
        shutil.copy(ROOT / item.module, folder / item.module)
        free.append(folder)
        yield item, status, time.monotonic() - start, (folder / "log.txt").read_text()


def main() -> int:
    """Prints a line for each mutant; 1 if one survives that is not in the list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="by default all")
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no mutant after that")
    args = parser.parse_args()
    if unknown := set(args.modules) - set(TESTS):
        parser.error(f"no tests are listed for {sorted(unknown)}; known are: {', '.join(TESTS)}")
    listed = tomllib.loads((ROOT / "scripts/survivors.toml").read_text())["survivor"]
    explained = {(s["module"], s["line"], mutant) for s in listed for mutant in s["mutants"]}
    modules = args.modules or list(TESTS)
    rng = random.Random(args.seed)
    drawn = [m for module in modules for m in mutants_of(module) if rng.random() < args.share]
    rng.shuffle(drawn)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        import_tools(Path(scratch, "compiled"))
        folders = [copy_of_repository(Path(scratch, str(j))) for j in range(args.jobs)]
        print(f"{len(drawn)} mutants; first, each module's tests without one", flush=True)
        unchanged = [Mutant(m, 0, "", "", (ROOT / m).read_text()) for m in modules]
        for mutant, status, seconds, log in outcomes(iter(unchanged), folders):
            print(f"{seconds:6.1f} s  {mutant.module}", flush=True)
            if status:
                print(log[-3000:])
                return 2
        end, counts = time.monotonic() + 60 * args.minutes, collections.Counter()
        in_time = itertools.takewhile(lambda _: time.monotonic() < end, drawn)
        for mutant, status, seconds, _ in outcomes(in_time, folders):
            word = "killed" if status else "explained" if mutant.key in explained else "SURVIVED"
            counts[word] += 1
            print(f"{seconds:6.1f} s  {word:9}  {mutant.module}:{mutant.number}")
            print(f"    - {mutant.line}\n    + {mutant.mutant}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    return bool(counts["SURVIVED"])


def import_tools(compiled: Path) -> None:
    """Everything heavy that tests import, and where children keep what they compile."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # tests/conftest.py says so after JAX is imported
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    sys.dont_write_bytecode = True  # a mutant may be as long and as old as what it replaces
    for name in ("chex", "flax.nnx", "hypothesis", "optax", "pytest", "scipy.stats"):
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
