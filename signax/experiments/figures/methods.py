"""Every method on MNIST: with workers who own different digits, and shuffled.

All run a fixed number of steps with a learning rate that decays linearly to zero, tuned in the same
way. Bits are what one worker sends per coordinate and step, both ways, read from the compiled step
(1-bit Adam's are those behind its 100 dense steps; its megabytes count these, too).

Left open by the paper, chosen here:
  network     784 - 64 (relu) - 10: 50,890 parameters, LeCun's initialisation
  workers     5 and 8 by label (worker n owns the digits n, n + M), and 8 with shuffled data
  steps       600, with 16 images for each worker
  tuning      four learning rates, a quarter of the steps, by the training loss; a seed that is not
              one of the 3 of the final runs
  accuracy    train: on 10,000 of the 60,000 images
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

import signax
from signax.experiments import workers
from signax.experiments.compare import compare
from signax.experiments.figures.contenders import (
    CONTENDERS,
    DENSE_STEPS,
    QUICK,
    optimizer,
)
from signax.experiments.figures.made import Claim, Columns, Made, tidy
from signax.experiments.figures.mnist_runs import (
    NUM_COORDINATES,
    Images,
    first_params,
    load_images,
    loss,
)
from signax.experiments.partition import split_examples
from signax.wire._cost import dense_bits

_BATCH_SIZE = 16
_KINDS = dict.fromkeys(contender.kind for contender in CONTENDERS.values())
_COLORS = dict(
    zip(_KINDS, ("black", "tab:blue", "tab:green", "tab:red", "tab:orange"), strict=True)
)
# The points that have a name: in which panels, and where it stands, in points to the right and up.
_NAMED = {
    "SGD, momentum": ("SGD, momentum", (0, 1), (-8, 9)),
    "signum, random ties": ("Signum,\nrandom ties", (0, 1), (-6, 0)),
    "sign_sgd": ("signSGD", (0,), (6, 0)),
    "noisy_sign_sgd": ("noisy signSGD", (0,), (6, -3)),
    "ssdm, as printed": ("SSDM, as printed", (0, 1), (6, 0)),
    "ssdm, norms sent": ("SSDM, norms sent", (0, 1), (-6, 0)),
    "ssdm, shared linf of 256": ("SSDM, shared scales", (0, 1), (7, -3)),
    "double_squeeze": ("DoubleSqueeze", (0,), (-2, 9)),
    "one_bit_adam": ("1-bit Adam", (0,), (6, 0)),
    "random_k_sgd, 1 %": ("random 1 %", (0, 1), (6, 0)),
}


class Setting(NamedTuple):
    """How the images are dealt out to how many workers."""

    partition: str
    num_workers: int

    @property
    def title(self) -> str:
        how = "shuffled" if self.partition == "iid" else "by label"
        return f"{how}, {self.num_workers} workers"


_SETTINGS = (Setting("by_label", 5), Setting("iid", 8), Setting("by_label", 8))


class Row(NamedTuple):
    """A method in a setting, at its best learning rate."""

    setting: str
    method: str
    learning_rate: float
    train_accuracy: np.ndarray  # [seed], percent
    test_accuracy: np.ndarray  # [seed], percent
    bits_per_coordinate: float
    megabytes: float  # sent by one worker in all steps


def make(is_quick: bool) -> Made:
    """Tunes and runs every method in every setting."""
    workers.make_mesh(max(setting.num_workers for setting in _SETTINGS))  # before JAX is used
    num_steps = 40 if is_quick else 600
    own = [name for name in CONTENDERS if ":" in name]
    names = (*QUICK, *own) if is_quick else tuple(CONTENDERS)
    images = load_images()
    rows = []
    for setting in _SETTINGS[:1] if is_quick else _SETTINGS:
        sample = _sampler(images, setting)
        rows += [_row(name, setting, sample, images, num_steps) for name in names]
    settings = f"{num_steps:,} steps, {len(names)} methods"
    return Made(_draw(rows), {"": _table(rows)}, settings, _claims(rows))


def _sampler(images: Images, setting: Setting) -> Callable:
    """`sample_batch(key, worker)`: images that the worker owns, drawn with replacement."""
    owned = split_examples(
        setting.partition, np.asarray(images.train["label"]), setting.num_workers, seed=0
    )
    sizes = jnp.array([len(rows) for rows in owned])
    table = jnp.stack([jnp.asarray(np.resize(rows, max(map(len, owned)))) for rows in owned])

    def sample(key, worker):
        places = jax.random.randint(key, (_BATCH_SIZE,), 0, sizes[worker])
        return jax.tree.map(lambda x: jnp.take(x, table[worker][places], axis=0), images.train)

    return sample


def _row(name: str, setting: Setting, sample: Callable, images: Images, num_steps: int) -> Row:
    def run(rates, steps, seeds, metrics):
        return compare(
            loss,
            first_params,
            sample,
            {name: lambda rate: optimizer(name, rate, steps)},
            learning_rates=rates,
            num_workers=setting.num_workers,
            num_steps=steps,
            seeds=seeds,
            eval_steps=4,
            metrics=metrics,
        )

    tuned = run(CONTENDERS[name].grid, num_steps // 4, [1000], {})
    rate = float(tuned.learning_rates[0, tuned.best()[0, 0]])
    result = run([rate], num_steps, range(3), images.metrics)
    bits = _bits(optimizer(name, rate, num_steps), setting.num_workers)
    train, test = (result.final(f"{of}_accuracy").reshape(-1) for of in ("train", "test"))
    megabytes = _megabytes(name, num_steps, bits, setting.num_workers)
    row = Row(setting.title, name, rate, train, test, bits, megabytes)
    print(f"  {setting.title}, {name}: train {train.mean():.2f} %, {megabytes:.2f} MB", flush=True)
    return row


def _bits(tx: Any, num_workers: int) -> float:
    """Bits per coordinate of one step, from HLO, for the leaves of this network."""
    mesh = workers.make_mesh(num_workers)
    params = jax.jit(first_params)(jax.random.key(0))
    total = lambda params, batch: sum(map(jnp.sum, params.values())) * jnp.mean(batch)  # noqa: E731
    step = signax.make_train_step(total, tx, mesh)
    state = signax.init_train_state(params, tx, mesh)
    batch = jax.ShapeDtypeStruct((num_workers,), jnp.float32)
    report = signax.wire_bits(step, state, batch, num_coordinates=NUM_COORDINATES)
    return report.of_branch(0).bits_per_coordinate


def _megabytes(name: str, num_steps: int, bits: float, num_workers: int) -> float:
    num_dense = min(num_steps, DENSE_STEPS.get(name, 0))
    dense = num_dense * dense_bits(num_workers)
    return (dense + (num_steps - num_dense) * bits) * NUM_COORDINATES / 8e6


def _claims(rows: list[Row]) -> tuple[Claim, ...]:
    by_label = [row for row in rows if row.setting == _SETTINGS[0].title]
    dense = max(_mean(row) for row in by_label if CONTENDERS[row.method].kind == "dense")
    two_bits = [row for row in by_label if row.bits_per_coordinate < 2]
    memoryless = [row for row in by_label if CONTENDERS[row.method].kind == "a mean of signs"]
    votes = [row for row in by_label if CONTENDERS[row.method].kind == "a vote"]
    beats = partial(_gap, dense)
    return (
        beats("5 workers by label, 1 bit up and 1 down: within 0.5 points of dense", two_bits, 0.5),
        beats("5 workers by label, no error memory: within 3 points of dense", memoryless, 3.0),
        beats("5 workers by label, a vote: within 3 points of dense", votes, 3.0),
    )


def _gap(dense: float, text: str, rows: list[Row], points: float) -> Claim:
    best = max(rows, key=_mean)
    gap = dense - _mean(best)
    measured = f"{best.method} {_mean(best):.2f} %, dense {dense:.2f} % (train): {gap:.2f} points"
    return Claim(text, measured, gap <= points)


def _mean(row: Row) -> float:
    return float(row.train_accuracy.mean())


def _draw(rows: list[Row]) -> Figure:
    titles = list(dict.fromkeys(row.setting for row in rows))[:2]  # the third is in the table
    figure = Figure(figsize=(5 * len(titles), 4.2), layout="constrained")
    panels: Any = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for panel, (ax, title) in enumerate(zip(panels, titles, strict=True)):
        for row in (row for row in rows if row.setting == title):
            _point(ax, row, panel)
        ax.set_xscale("log")
        ax.set_xlim(1.5, 600)
        ax.set_ylim(20, 100)
        ax.set_title(title)
        ax.set_xlabel("sent by one worker [MB]")
        tidy(ax)
    panels[0].set_ylabel("test accuracy [%]")
    for kind, color in _COLORS.items():
        panels[-1].plot([], [], "o", ms=4, color=color, label=kind)
    panels[-1].legend(loc="lower right", fontsize=8)
    return figure


def _point(ax: Any, row: Row, panel: int) -> None:
    """The mean and its deviation; a name where there is room for one."""
    color = _COLORS[CONTENDERS[row.method].kind]
    y, spread = row.test_accuracy.mean(), row.test_accuracy.std(ddof=1)
    ax.errorbar(row.megabytes, y, spread, fmt="o", ms=4, color=color, capsize=2, elinewidth=1)
    name, panels, offset = _NAMED.get(row.method, (row.method, (0, 1), (6, 0)))
    if panel in panels and (row.method in _NAMED or ":" in row.method):  # or one's own
        ax.annotate(
            name, (row.megabytes, y), offset, textcoords="offset points",
            fontsize=8, color=color, ha="left" if offset[0] > 0 else "right", va="center",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip


def _table(rows: list[Row]) -> Columns:
    numbers = {
        "learning_rate": [row.learning_rate for row in rows],
        "train_accuracy": [row.train_accuracy.mean() for row in rows],
        "train_accuracy_std": [row.train_accuracy.std(ddof=1) for row in rows],
        "test_accuracy": [row.test_accuracy.mean() for row in rows],
        "test_accuracy_std": [row.test_accuracy.std(ddof=1) for row in rows],
        "bits_per_coordinate": [row.bits_per_coordinate for row in rows],
        "megabytes": [row.megabytes for row in rows],
    }
    words = {
        "setting": np.array([row.setting for row in rows]),
        "method": np.array([row.method for row in rows]),
    }
    return words | {name: np.array(column, float) for name, column in numbers.items()}
