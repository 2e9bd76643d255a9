"""Figure 2: signSGD and SGD on MNIST when every batch has only the labels 0-4 or only 5-9.

The stochastic gradients then have laws with two humps, for which Lemma 1 does not hold and success
probabilities still do. Left: accuracy against megabytes, mean and standard deviation of 3
repetitions. Right: the stochastic gradients of two weights before epochs 5, 25 and 50.

Left open by the paper, chosen here:
  network     784 - 64 (relu) - 10: 50,890 parameters, LeCun's initialisation
  batches     128 images drawn with replacement from one half, the half by a fair coin
  budget      50 epochs of signSGD: 298 MB at 2 bits per coordinate and step, as the paper's sign(0)
              is 0 (ties="zero"); SGD sends 32 bits
  tuning      {1, 0.1, 0.01, 0.001, 0.0001} on a tenth of the budget, then {0.1, 0.2, 0.5, 1, 2}
              times the best on 0.3 of it, by the training loss
  weights     the output biases of the labels 0 and 9, in the first repetition of signSGD, 2,000
              batches
  accuracy    train: on 10,000 of the 60,000 images
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from signax.experiments.comparison_plot import draw_band
from signax.experiments.figures.made import Claim, Columns, Made, tidy
from signax.experiments.figures.mnist_runs import (
    METHODS,
    Tuned,
    at_megabytes,
    first_params,
    load_images,
    loss,
    megabytes,
    tune_and_run,
)

_GRID = (1.0, 0.1, 0.01, 0.001, 0.0001)
_BATCH_SIZE, _STEPS_PER_EPOCH = 128, 60_000 // 128
_LABELS = (0, 9)  # whose output biases are looked at
_COLORS = {"signSGD": "tab:blue", "SGD": "tab:orange"}


def make(is_quick: bool) -> Made:
    """Tunes and runs both methods, and draws accuracies and histograms."""
    images = load_images()
    epochs = (1, 2) if is_quick else (5, 25, 50)
    starts = tuple((epoch - 1) * _STEPS_PER_EPOCH for epoch in epochs)
    budget = megabytes("signSGD", epochs[-1] * _STEPS_PER_EPOCH)
    with_params = images._replace(
        metrics=images.metrics | {"params": lambda params: ravel_pytree(params)[0]}
    )
    sample = partial(_sample_split, images.train, _halves(images.train["label"]))
    runs = {
        method: tune_and_run(
            method,
            sample,
            budget,
            _GRID,
            extra_points=starts if method == "signSGD" else (),
            is_quick=is_quick,
            images=with_params if method == "signSGD" else images,
        )
        for method in METHODS
    }
    clouds = _gradients(runs["signSGD"], starts, sample, 200 if is_quick else 2000)
    settings = f"budget {budget:.1f} MB; " + ", ".join(
        f"{name}: learning rate {run.learning_rate:.3g}" for name, run in runs.items()
    )
    tables = {"": _table(runs), "_gradients": _gradient_table(clouds, epochs)}
    claims = _claims(runs, clouds, epochs, budget)
    return Made(_draw(runs, clouds, epochs, budget), tables, settings, claims)


def _halves(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The examples sorted by half, padded to one length, and how many there are: [2, n], [2]."""
    low, high = np.flatnonzero(np.asarray(labels) < 5), np.flatnonzero(np.asarray(labels) >= 5)
    size = max(len(low), len(high))
    rows = np.stack([np.resize(low, size), np.resize(high, size)])
    return jnp.asarray(rows, jnp.int32), jnp.asarray([len(low), len(high)])


def _sample_split(train: Any, halves: Any, key: jax.Array, worker: Any) -> dict[str, jax.Array]:
    del worker
    coin, draw = jax.random.split(key)
    half = jax.random.randint(coin, (), 0, 2)
    rows, sizes = halves
    chosen = rows[half][jax.random.randint(draw, (_BATCH_SIZE,), 0, sizes[half])]
    return jax.tree.map(lambda x: jnp.take(x, chosen, axis=0), train)


def _gradients(run: Tuned, starts: tuple[int, ...], sample: Any, count: int) -> np.ndarray:
    """Stochastic gradients of the two biases at each of the steps: [epoch, batch, weight]."""
    _, unravel = ravel_pytree(first_params(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(2000), count)

    @jax.jit
    def at(flat):
        def one(key):
            gradient = jax.grad(loss)(unravel(flat), sample(key, 0))
            return gradient["b2"][jnp.array(_LABELS)]

        return jax.lax.map(one, keys, batch_size=20)

    first_repetition = run.result["params"][0, 0, 0, 0]
    points = [int(np.flatnonzero(run.result.steps == start)[0]) for start in starts]
    return np.stack([at(first_repetition[point]) for point in points])


def _claims(runs: Any, clouds: Any, epochs: Any, budget: float) -> tuple[Claim, ...]:
    early = min(1.0, budget)
    sign, dense = (at_megabytes(runs[m], m, "train_accuracy", early) for m in METHODS)
    middle, end = (
        [
            at_megabytes(runs["signSGD"], "signSGD", f"{split}_accuracy", part)
            for split in ("train", "test")
        ]
        for part in (budget / 2, budget)
    )
    rises = [after - before for before, after in zip(middle, end, strict=True)]
    shape = [_bimodality(cloud) for cloud in clouds[-1].T]
    return (
        Claim(
            f"early on signSGD is more efficient (batch 128 at {early:.2g} MB; by 20 points or"
            " more)",
            f"signSGD {sign:.1f} %, SGD {dense:.1f} %: {sign - dense:+.1f} points",
            sign - dense >= 20,
        ),
        Claim(
            "signSGD converges although stochastic gradients have two humps (Sarle's coefficient"
            " above 5/9, that of a uniform law; train accuracy above 95 %)",
            f"before epoch {epochs[-1]}: "
            + ", ".join(f"bias {i}: {b:.2f}" for i, b in zip(_LABELS, shape, strict=True))
            + f"; train accuracy {end[0]:.2f} %",
            min(shape) > 5 / 9 and end[0] > 95,
        ),
        Claim(
            "in the second half test accuracy does not improve while train accuracy grows slowly"
            " (test by less than 0.1 points, train by more)",
            f"train {rises[0]:+.2f} points to {end[0]:.2f} %, test {rises[1]:+.2f} to"
            f" {end[1]:.2f} %",
            rises[1] < 0.1 < rises[0],
        ),
    )


def _bimodality(x: np.ndarray) -> float:
    """Sarle's coefficient (skewness^2 + 1) / kurtosis: 1/3 normal, 5/9 uniform, 1 two points."""
    z = (x - x.mean()) / x.std()
    return float(((z**3).mean() ** 2 + 1) / (z**4).mean())


def _draw(runs: Any, clouds: np.ndarray, epochs: Any, budget: float) -> Figure:
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 1 + len(epochs), width_ratios=[1.5, *[1] * len(epochs)])
    for row, metric in enumerate(("train_accuracy", "test_accuracy")):
        ax = figure.add_subplot(grid[row, 0])
        for method, run in runs.items():
            x = megabytes(method, run.result.steps)[1:]
            label = f"{method}, lr {run.learning_rate:.2g}"
            curves = run.result[metric][0, 0, 0][:, 1:]
            draw_band(ax, x, curves, color=_COLORS[method], label=label)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlim(0.05, budget)
        ax.set_ylim(0, 101)
        ax.set_ylabel(f"{metric.split('_')[0]} accuracy [%]")
        tidy(ax)
        ax.legend(loc="lower right")
    ax.set_xlabel("gradient communication of one worker [MB]")
    for column, epoch in enumerate(epochs):
        for row, label in enumerate(_LABELS):
            ax = figure.add_subplot(grid[row, 1 + column])
            values = clouds[column, :, row]
            ax.hist(values, bins=50, color="tab:gray")
            ax.axvline(values.mean(), color="tab:red", ls="--")
            ax.set_title(f"bias of label {label}, before epoch {epoch}", fontsize=10)
            tidy(ax)
            if column == 0:
                ax.set_ylabel(f"batches of {len(values):,}")
            if row == 1:
                ax.set_xlabel("stochastic gradient [nats / unit]")
    return figure


def _table(runs: Any) -> Columns:
    parts = []
    for method, run in runs.items():
        columns = run.result.columns()
        parts.append(columns | {"megabytes": megabytes(method, columns["step"])})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _gradient_table(clouds: np.ndarray, epochs: Any) -> Columns:
    epoch, _, label = (index.ravel() for index in np.indices(clouds.shape))
    return {
        "before_epoch": np.array(epochs)[epoch],
        "bias_of_label": np.array(_LABELS)[label],
        "gradient": clouds.ravel(),
    }
