"""Which figures there are. A new one is a module with `make(is_quick) -> Made`, and a line here."""

from typing import NamedTuple


class Entry(NamedTuple):
    """A figure, by the name on the command line."""

    module: str  # in this folder; also the stem of the files that it writes
    summary: str
    needs_mnist: bool = False
    is_the_papers: bool = True  # then `all` makes it, too


FIGURES = {
    "1": Entry("figure_1", "level sets of the mixed norm (7)"),
    "4": Entry("figure_4", "majority vote of 1 to 16 workers on Rosenbrock's function"),
    "rosenbrock": Entry("rosenbrock", "noise, mini-batches and success probabilities"),
    "theorem4": Entry("theorem4", "the rate of Theorem 4, and where it stalls"),
    "counterexample": Entry("counterexample", "who leaves the line of (5)-(6)"),
    "2": Entry("figure_2", "MNIST, split batches: accuracy, gradients with two humps", True),
    "3": Entry("figure_3", "MNIST, standard batches of three sizes", True),
    "methods": Entry(
        "methods", "MNIST: every method, by label and shuffled; not in `all`", True, False
    ),
}
