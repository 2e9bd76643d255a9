"""MNIST with one hidden layer, on one worker and a budget of megabytes: Figures 2 and 3."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import signax
from signax.experiments.compare import compare
from signax.experiments.comparison import Comparison
from signax.experiments.data import load_dataset
from signax.experiments.default_config import get_config

HIDDEN_SIZE = 64
NUM_COORDINATES = 785 * HIDDEN_SIZE + (HIDDEN_SIZE + 1) * 10  # 50,890
BITS = {"signSGD": 2, "SGD": 32}  # per coordinate and step, from the worker to the server
_AXIS = "workers"
METHODS = {
    "signSGD": lambda rate: signax.sign_sgd(rate, axis_name=_AXIS, ties="zero"),
    "SGD": lambda rate: signax.dense_sgd(rate, axis_name=_AXIS),
}
_FINER = (0.1, 0.2, 0.5, 1.0, 2.0)  # times the best of the log grid
_NUM_SCORED = 10_000  # training images on which the train accuracy is taken


class Images(NamedTuple):
    """What `compare` needs of MNIST."""

    train: dict[str, Any]  # "image" uint8 [60000, 784], "label" int32 [60000]
    metrics: dict[str, Callable]


class Tuned(NamedTuple):
    """A run at the tuned learning rate, and every rate that was tried on the way."""

    result: Comparison
    learning_rate: float
    tried: list[float]


def load_images() -> Images:
    """Loads MNIST; without it, the `UsageError` says what to do."""
    config = get_config()
    with config.unlocked():
        config.dataset = "mnist"
    data = load_dataset(config)
    scored = (data.train.images[:_NUM_SCORED], data.train.labels[:_NUM_SCORED])
    return Images(
        {"image": jnp.asarray(data.train.images), "label": jnp.asarray(data.train.labels)},
        {"train_accuracy": _accuracy(*scored), "test_accuracy": _accuracy(*data.test)},
    )


def first_params(key: jax.Array) -> dict[str, jax.Array]:
    """LeCun's initialisation: normal with variance 1 / fan-in; biases zero."""
    keys = jax.random.split(key)
    draw = jax.nn.initializers.lecun_normal()
    return {
        "w1": draw(keys[0], (784, HIDDEN_SIZE)),
        "b1": jnp.zeros(HIDDEN_SIZE),
        "w2": draw(keys[1], (HIDDEN_SIZE, 10)),
        "b2": jnp.zeros(10),
    }


def logits(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """images (bytes) -> relu(images / 255 W1 + b1) W2 + b2."""
    pixels = images.astype(jnp.float32) / 255.0
    hidden = jax.nn.relu(pixels @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"] + params["b2"][None]


def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Cross-entropy [nats]."""
    scores = logits(params, batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"]).mean()


def _accuracy(images: Any, labels: Any) -> Callable:
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    return lambda params: 100 * jnp.mean(jnp.argmax(logits(params, images), -1) == labels)


def megabytes(method: str, steps: Any) -> Any:
    """What one worker has sent after so many steps."""
    return steps * (BITS[method] * NUM_COORDINATES / 8e6)


def num_steps_of(method: str, budget: float) -> int:
    """How many steps the budget [MB] pays for."""
    return int(budget / megabytes(method, 1))


def tune_and_run(
    method: str,
    data: Any,
    budget: float,
    grid: tuple[float, ...],
    *,
    extra_points: tuple[int, ...] = (),
    is_quick: bool,
    images: Images,
    **data_arguments: Any,
) -> Tuned:
    """The log grid on a tenth of the budget, a finer one on 0.3 of it, then 3 repetitions of all.

    The quick version has no finer grid. Both times the rate with the least training loss is kept
    (accuracy saturates at 100 %). Tuning has a seed of its own.
    """
    metrics = images.metrics

    def run(rates, share, seeds, points, metrics):
        return compare(
            loss,
            first_params,
            data,
            {method: METHODS[method]},
            learning_rates=rates,
            num_steps=max(2, num_steps_of(method, share * budget)),
            seeds=seeds,
            eval_steps=points,
            metrics=metrics,
            **data_arguments,
        )

    def best(rates, share):
        result = run(rates, share, [1000], 4, {})
        return float(result.learning_rates[0, result.best()[0, 0]])

    rate, tried = best(grid, 0.1), [*grid]
    if not is_quick:
        fine = [rate * factor for factor in _FINER]
        rate, tried = best(fine, 0.3), [*grid, *fine]
    last = num_steps_of(method, budget)
    points = np.geomspace(1, last, 10 if is_quick else 28).astype(int)
    points = np.unique([*points, min(last, num_steps_of(method, 1.0)), *extra_points])
    return Tuned(run([rate], 1.0, range(3), points.tolist(), metrics), rate, tried)


def at_megabytes(tuned: Tuned, method: str, metric: str, size: float) -> float:
    """Mean over the repetitions at the last point that `size` [MB] pays for."""
    is_paid = megabytes(method, tuned.result.steps) <= size * (1 + 1e-9)
    return float(tuned.result[metric][0, 0, 0][:, is_paid][:, -1].mean())
