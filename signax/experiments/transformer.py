"""A decoder over bytes in Flax NNX: which byte comes next?

    bytes [.., T] -> embedding + position -> L x (attention to what came before, MLP) -> 256 logits

Pre-norm, GELU, no dropout. Each matrix is a leaf of its own with its inputs as rows, as low-rank
methods want it. About 12 L width^2 parameters: 5.1 million with L = 4 and a width of 320.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from signax.experiments.metric import BITS_PER_BYTE

NUM_BYTES = 256
Params = Any


class Block(nnx.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, num_heads: int, num_layers: int, *, rngs: nnx.Rngs):
        # What is added to the residual stream is smaller the more layers add to it.
        smaller = nnx.initializers.variance_scaling(1 / (2 * num_layers), "fan_in", "normal")
        self.num_heads = num_heads
        self.before_attention = nnx.LayerNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, kernel_init=smaller, rngs=rngs)
        self.before_mlp = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, kernel_init=smaller, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.out(self._attention(self.qkv(self.before_attention(x))))
        return x + self.down(nnx.gelu(self.up(self.before_mlp(x))))

    def _attention(self, qkv: jax.Array) -> jax.Array:
        heads = (*qkv.shape[:-1], self.num_heads, -1)
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return mixed.reshape(*qkv.shape[:-1], -1)


class Transformer(nnx.Module):
    """bytes [B, T] -> logits [B, T, 256] of the byte that follows each."""

    def __init__(self, length: int, width: int, num_layers: int, num_heads: int, *, rngs: nnx.Rngs):
        self.byte = nnx.Embed(NUM_BYTES, width, rngs=rngs)
        self.position = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List(
            [Block(width, num_heads, num_layers, rngs=rngs) for _ in range(num_layers)]
        )
        self.last_norm = nnx.LayerNorm(width, rngs=rngs)
        # So that it starts by knowing nothing, at 8 bits per byte.
        small = nnx.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.logits = nnx.Linear(width, NUM_BYTES, kernel_init=small, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        positions = jnp.arange(text.shape[1], dtype=jnp.int32)[None]
        x = self.byte(text.astype(jnp.int32)) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        return self.logits(self.last_norm(x))


class Model(NamedTuple):
    """A transformer split into what training changes and what it does not."""

    graphdef: Any

    def nats(self, params: Params, text: jax.Array) -> jax.Array:
        """Of each byte but the first: uint8 [B, T + 1] -> float32 [B, T]."""
        logits = nnx.merge(self.graphdef, params)(text[:, :-1])
        following = text[:, 1:].astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, following)

    def loss(
        self, params: Params, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of *this worker's* batch: no mean over workers, the vote is the network."""
        loss = jnp.mean(self.nats(params, batch["text"]))
        return loss, {BITS_PER_BYTE.name: loss / math.log(2)}

    def score(
        self, params: Params, examples: dict[str, jax.Array], is_example: jax.Array
    ) -> jax.Array:
        """Bits per byte. A byte is foretold from those before it in its window: T/2 on average."""
        text = examples["text"]
        nats = self.nats(params, text.reshape(-1, text.shape[-1])).mean(axis=-1)
        is_example = is_example.reshape(-1)
        total = jnp.sum(jnp.where(is_example, nats, 0.0))
        return total / (jnp.sum(is_example) * math.log(2))


def make_model(
    length: int, width: int, num_layers: int, num_heads: int, seed: int
) -> tuple[Model, Params]:
    """Returns the model and its first parameters, drawn from `seed`."""
    network = Transformer(length, width, num_layers, num_heads, rngs=nnx.Rngs(seed))
    graphdef, params = nnx.split(network)
    return Model(graphdef), params
