"""Half of float32: the mean of gradients that are rounded to bfloat16, both ways."""

import jax
import jax.numpy as jnp
import optax

from signax import _network, _workers
from signax.baselines import _exchange, _link
from signax.wire import _server


def average_bfloat16(
    axis_name: _workers.AxisName | None, *, on_nonfinite: _network.OnNonfinite = "abstain"
) -> optax.GradientTransformation:
    r"""The mean of the workers' gradients in bfloat16: 16 bits per coordinate each way.

    $$ u = \operatorname{bf} \left[ \frac{1}{M} \sum_{n=1}^{M} \operatorname{bf}(g^n) \right] $$

    A bfloat16 `lax.psum` rounds at each addition, and on CPU it travels as float32 (the compiled
    program converts first). Here the rounded numbers go as bytes to the servers of the slices, are
    added in float32, and their rounded mean comes back: 32 (M - 1)/M bits per coordinate and worker
    on every backend, padding and the votes' flags aside.

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker (rounded all the same).
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.

    Returns:
      A transformation that keeps shapes and dtypes; its updates are the same on all workers. A
      worker whose tree holds a NaN or an infinity abstains; without any other the update is zero.
      An empty tree passes.

    Raises:
      ValueError: For an unknown `on_nonfinite`; at update, if an axis is not bound, or if the
        gradients were already summed.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.average_bfloat16("workers")
      >>> mean = lambda g: tx.update(g, tx.init(g))[0]
      >>> print(jax.vmap(mean, axis_name="workers", out_axes=None)(jnp.array([1.0, 2.001])))
      1.5
    """

    def exchange(updates, is_voting, state):
        del state
        leaves = jax.tree.leaves(updates)
        payloads = [_bytes(leaf) for leaf in leaves]
        scales = jnp.ones(len(leaves), jnp.float32)
        mean, voters = _exchange.mean(
            payloads, scales, is_voting, updates, _decode, jnp.bfloat16, axis_name
        )
        return mean, voters, None, None

    return _link.make(
        "baselines.average_bfloat16",
        axis_name,
        exchange,
        has_feedback=False,
        on_nonfinite=on_nonfinite,
    )


def _bytes(leaf: jax.Array) -> jax.Array:
    """uint8[ceil(size / 8), 16]"""
    flat = leaf.reshape(-1).astype(jnp.bfloat16)
    return _server.to_bytes(jnp.pad(flat, (0, -flat.size % 8))).reshape(-1, 16)


def _decode(words: jax.Array, scale: jax.Array) -> jax.Array:
    return _server.from_bytes(words, jnp.bfloat16).astype(jnp.float32) * scale
