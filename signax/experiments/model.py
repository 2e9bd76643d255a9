"""One hidden layer in Flax NNX, and its loss in the shape that `signax.make_train_step` wants."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Batch = dict[str, jax.Array]
Params = Any


class Network(nnx.Module):
    """image -> relu(W1 image + b1) -> W2 hidden + b2."""

    def __init__(self, num_pixels: int, hidden_size: int, num_classes: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(num_pixels, hidden_size, rngs=rngs)
        self.logits = nnx.Linear(hidden_size, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.logits(nnx.relu(self.hidden(images)))


class Model(NamedTuple):
    """A network split into what training changes and what it does not."""

    graphdef: Any
    max_pixel: int  # images travel as bytes; the network sees [0, 1]

    def logits(self, params: Params, images: jax.Array) -> jax.Array:
        network = nnx.merge(self.graphdef, params)
        return network(images.astype(jnp.float32) / self.max_pixel)

    def loss(self, params: Params, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of *this worker's* batch: no mean over workers, the vote is the network."""
        logits = self.logits(params, batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])
        return jnp.mean(losses), {"accuracy": accuracy}

    def score(self, params: Params, examples: Batch, is_example: jax.Array) -> jax.Array:
        """The share of right answers."""
        is_right = jnp.argmax(self.logits(params, examples["image"]), axis=-1) == examples["label"]
        return jnp.sum(is_right & is_example) / jnp.sum(is_example)


def make_model(
    num_pixels: int, hidden_size: int, num_classes: int, max_pixel: int, seed: int
) -> tuple[Model, Params]:
    """Returns the model and its first parameters, drawn from `seed`."""
    network = Network(num_pixels, hidden_size, num_classes, rngs=nnx.Rngs(seed))
    graphdef, params = nnx.split(network)
    return Model(graphdef, max_pixel), params
