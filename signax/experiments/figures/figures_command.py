"""`signax figures [NAME ...]`: make the paper's figures, and say which of its claims they bear out.

A figure is a module of this folder (`table.py` has the list); its docstring is printed, since it
says what the paper left open and what was chosen.
"""

import argparse
import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from signax.experiments.errors import Parser, UsageError, unknown_name
from signax.experiments.figures.table import FIGURES
from signax.experiments.folder import make_folder, named


def main(argv: Sequence[str]) -> int:
    """Makes the figures that are named and returns the exit status."""
    try:
        flags = _parser().parse_args(argv)
    except SystemExit as ended:  # --help
        return int(ended.code or 0)
    own = [name for name in flags.names if ":" in name]
    flags.names = [name for name in flags.names if ":" not in name]
    for name in flags.names:
        if name not in (*FIGURES, "all"):
            raise unknown_name("figure", name, (*FIGURES, "all"))
    if own:
        _enter(own, flags.names)
    make_folder(flags.workdir)
    _make_all(flags) if "all" in flags.names else [_make(n, flags) for n in flags.names]
    return 0


def _enter(own: Sequence[str], names: Sequence[str]) -> None:
    """Lets methods of one's own take part in `methods`."""
    if "methods" not in names:
        raise UsageError(f"{own[0]}: a method of yours takes part in `signax figures methods`.")
    from signax.experiments.figures import contenders

    for name in own:
        contenders.enter(name)


def _parser() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {name:<15} {entry.summary}" for name, entry in FIGURES.items())
    parser = Parser(
        prog="signax figures",
        description="The paper's figures and claims, measured again. NAME is one of\n\n"
        f"{rows}\n  {'all':<15} the paper's; those of MNIST only where MNIST is at hand\n\n"
        "Each writes a PNG and the CSV behind it. With `methods`, package.module:function is a"
        " method\nof yours that takes part.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add: Any = parser.add_argument
    add("names", nargs="*", metavar="NAME", default=["all"], help="default: all")
    add("--quick", action="store_true", help="small versions: whether it runs, not what is true")
    add("--workdir", type=named, default=Path("runs/figures"), help="default: runs/figures")
    return parser


def _make_all(flags: argparse.Namespace) -> None:
    left_out, reason = [], ""
    papers = {name: entry for name, entry in FIGURES.items() if entry.is_the_papers}
    for name, entry in papers.items():
        if entry.needs_mnist and not reason:
            reason = _why_no_mnist()
        if entry.needs_mnist and reason:
            left_out.append(name)
        else:
            _make(name, flags)
    if left_out:
        print(f"Left out, as they need MNIST: {', '.join(left_out)}. {reason}")


def _why_no_mnist() -> str:
    from signax.experiments.figures.mnist_runs import load_images

    try:
        load_images()
    except UsageError as error:
        return str(error)
    return ""


def _make(name: str, flags: argparse.Namespace) -> None:
    module = importlib.import_module(f"signax.experiments.figures.{FIGURES[name].module}")
    from signax.experiments.figures.made import describe, write  # matplotlib loads slowly

    print(f"{(module.__doc__ or '').strip()}\n", flush=True)
    start = time.perf_counter()
    made = module.make(flags.quick)
    paths = write(made, FIGURES[name].module, flags.workdir)
    print(f"This run: {made.settings}" + (" (--quick)" if flags.quick else ""))
    for claim in made.claims:
        print(describe(claim))
    seconds = time.perf_counter() - start
    print(f"{', '.join(map(str, paths))}: {seconds:.0f} s\n", flush=True)
