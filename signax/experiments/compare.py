"""Methods x learning rates x seeds x numbers of workers on your own loss and data.

`signax compare`, the command that prints a table of finished runs, lies in `compare_command.py`.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from signax.experiments.batches import Batches, from_function, in_epochs
from signax.experiments.comparison import Comparison
from signax.experiments.sweep import Method, Sweep, run_sweep


def compare(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    methods: Mapping[str, Method],
    *,
    learning_rates: Sequence[float] | Mapping[str, Sequence[float]],
    num_steps: int,
    batch_size: int | None = None,
    num_workers: int | Sequence[int] = 1,
    seeds: Iterable[int] = range(3),
    metrics: Mapping[str, Callable[[Any], Any]] | None = None,
    eval_steps: int | Sequence[int] = 50,
    axis_name: str = "workers",
    show_progress: bool = True,
) -> Comparison:
    r"""Runs every method at every learning rate, seed and number of workers, on one device.

    A method and a number of workers M are one compiled program: its workers, learning rates and
    seeds are rows of nested `jax.vmap`, its steps a `lax.scan`. The steps are those of
    `signax.simulate_train_step`, so the signs, votes and updates are those of M devices. M may be
    1,000 and more; memory grows with the number of rows, M * learning rates * seeds gradients.

    Args:
      loss_fn: A worker's own loss, `loss_fn(params, batch) -> scalar`, as for
        `signax.make_train_step`.
      params: The first parameters, a tree of float arrays; or a function `key -> params` that
        draws them, once for each seed.
      data: Either a tree of arrays whose leading axis is the examples, shared by all workers:
        shuffled before each epoch (for each seed anew), then dealt out in order, `batch_size` to
        each worker. Or a function `sample_batch(key, worker) -> batch` with a key for each seed,
        step and worker; `worker` is a traced int, so workers may own different data. The leaves of
        its batch have a leading axis of examples.
      methods: By name, functions from a (traced) learning rate to an Optax transformation with a
        network link over `axis_name`: `lambda lr: signax.ssdm(lr, axis_name="workers")`. Seeds
        toss their own coins: the seed is folded into every key that the optimizer's state holds.
      learning_rates: To be tried with every method; or, by method, as many for each.
      num_steps: Of every run.
      batch_size: Examples per worker and step, where `data` are arrays.
      num_workers: M, one or several.
      seeds: Of the first parameters, the data and the coins. One seed sees the same batches with
        every method and learning rate.
      metrics: By name, functions of the parameters, such as the accuracy on a test set: arrays of
        a fixed shape, most often scalars.
      eval_steps: How many points to take the metrics at, evenly spaced, or the steps themselves.
        The first parameters (step 0) are always a point.
      axis_name: The name of the workers' axis in `methods`.
      show_progress: Whether a bar on stderr counts the steps.

    Returns:
      A `Comparison`: each metric as one array [method, learning rate, M, seed, point], and "loss",
      the mean training loss over the steps since the point before (NaN at step 0).

    Raises:
      ValueError: For what cannot be run, before anything is; it names the argument or the method.

    Example:
      >>> import jax, jax.numpy as jnp, signax
      >>> from signax.experiments.compare import compare
      >>> result = compare(
      ...   lambda x, batch: jnp.mean((x - batch) ** 2),
      ...   jnp.zeros(()),
      ...   lambda key, worker: 1.0 + jax.random.normal(key, (8,)),
      ...   {
      ...     "ours": lambda lr: signax.ssdm(lr, axis_name="workers"),
      ...     "SGD": lambda lr: signax.dense_sgd(lr, axis_name="workers"),
      ...   },
      ...   learning_rates=[0.1, 0.01],
      ...   num_workers=10,
      ...   num_steps=200,
      ...   metrics={"distance": lambda x: jnp.abs(x - 1.0)},
      ...   show_progress=False,
      ... )
      >>> result["distance"].shape
      (2, 2, 1, 3, 51)
      >>> bool((result.final("distance")[:, 1] < 0.2).all())  # learning rate 0.01
      True
      >>> figure = result.plot("distance")
    """
    all_seeds, counts = _integers("seeds", seeds, 0), _integers("num_workers", num_workers, 1)
    points = _points(num_steps, eval_steps)
    rates = _rates(learning_rates, methods)
    metrics = dict(metrics or {})
    if "loss" in metrics:
        raise ValueError('compare: metrics["loss"]: the training loss has this name; rename yours.')
    bar = tqdm(
        total=len(methods) * len(counts) * num_steps,
        unit="step",
        disable=not show_progress,
        leave=False,
    )
    values = []
    with bar:
        for (name, method), row in zip(methods.items(), rates, strict=True):
            of_method = []
            for count in counts.tolist():
                bar.set_postfix_str(f"{name}, M = {count}")
                batches = _batches(data, batch_size, count)
                make_params = params if callable(params) else lambda key: params
                sweep = Sweep(loss_fn, make_params, batches, method, count, metrics, axis_name)
                with _named(name, count):
                    of_method.append(run_sweep(sweep, row, all_seeds, points, bar.update))
            values.append({k: np.stack([v[k] for v in of_method], axis=1) for k in of_method[0]})
    stacked = {k: np.stack([v[k] for v in values]) for k in values[0]}
    return Comparison(tuple(methods), rates, counts, all_seeds, points, stacked)


def _integers(name: str, given: Any, least: int) -> np.ndarray:
    array = np.atleast_1d(np.asarray(given if isinstance(given, int) else list(given)))
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu" or array.min() < least:
        raise ValueError(
            f"compare: {name}={given!r} must be one or more whole numbers from {least} on, such as"
            f" {name}={[least, least + 1]}."
        )
    return array


def _points(num_steps: int, eval_steps: int | Sequence[int]) -> np.ndarray:
    if num_steps < 1:
        raise ValueError(f"compare: num_steps={num_steps} must be at least 1.")
    if isinstance(eval_steps, int):
        count = min(max(eval_steps, 1), num_steps)
        inner = np.linspace(0, num_steps, count + 1).astype(int).tolist()
    else:
        inner = list(eval_steps)
    points = np.unique(np.asarray([0, *inner, num_steps]))
    if points.dtype.kind not in "iu" or points[0] < 0 or points[-1] > num_steps:
        raise ValueError(
            f"compare: eval_steps must be whole numbers of steps from 0 to num_steps={num_steps},"
            f" got {points.tolist()}."
        )
    return points


def _rates(given: Any, methods: Mapping[str, Method]) -> np.ndarray:
    """[method, learning rate]"""
    if not isinstance(methods, Mapping) or not methods:
        raise ValueError(
            "compare: methods must be a dict of at least one method, by name, such as"
            ' {"SSDM": lambda lr: signax.ssdm(lr, axis_name="workers")}.'
        )
    for name, method in methods.items():
        if not callable(method):
            raise ValueError(
                f"compare: methods[{name!r}] must be a function from a learning rate to an Optax"
                f" transformation, got {type(method).__name__}. Write"
                f' {{{name!r}: lambda lr: signax.sign_sgd(lr, axis_name="workers")}}.'
            )
    by_name = given if isinstance(given, Mapping) else dict.fromkeys(methods, given)
    if set(by_name) != set(methods):
        raise ValueError(
            f"compare: learning_rates are given for {sorted(by_name)} and methods are"
            f" {sorted(methods)}: give every method its own, or one list for all."
        )
    rows = [np.atleast_1d(np.asarray(by_name[name], float)) for name in methods]
    if len({row.shape for row in rows}) > 1 or rows[0].ndim != 1 or not rows[0].size:
        raise ValueError(
            "compare: every method needs the same number of learning rates, and at least one (they"
            f" are one axis of the result), got {dict(zip(methods, map(len, rows), strict=True))}."
        )
    return np.stack(rows)


def _batches(data: Any, batch_size: int | None, num_workers: int) -> Batches:
    if callable(data):
        if batch_size is not None:
            raise ValueError(
                "compare: batch_size is for data given as arrays; a function sample_batch(key,"
                " worker) decides itself how many examples it returns. Leave batch_size out."
            )
        _require_examples(jax.eval_shape(data, jax.random.key(0), 0))
        return from_function(data, num_workers)
    num_examples = _require_examples(data)
    if batch_size is None or not 1 <= batch_size * num_workers <= num_examples:
        raise ValueError(
            f"compare: batch_size={batch_size} with {num_workers} workers and {num_examples}"
            " examples: it is the number of examples per worker and step, at least 1, and all"
            " workers together take no more than there are."
        )
    return in_epochs(data, batch_size, num_workers)


def _require_examples(tree: Any) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            "compare: every array of the data, and of what sample_batch returns, needs a leading"
            f" axis of examples of one length, got shapes {shapes}. For one example write x[None]."
        )
    return shapes[0][0]


@contextlib.contextmanager
def _named(method: str, num_workers: int):
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"(compare: method {method!r} with {num_workers} workers)")
        if "network link" in str(error):
            error.add_note(
                "An optimizer without a vote becomes one with signax.average_gradients in front:"
                ' optax.chain(signax.average_gradients("workers"), optax.adam(lr)).'
            )
        raise
