"""The compiled step of one worker, on parameters large enough to see what it writes."""

import jax
import jax.numpy as jnp
import optax


def temporary_share(
    tx: optax.GradientTransformation, shape: tuple[int, ...] = (300, 1024)
) -> float:
    """Bytes that a donated step needs beside parameters, state and gradient, per byte of model."""
    params = {name: jnp.zeros(shape) for name in "abc"}

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile()
    model = sum(4 * x.size for x in jax.tree.leaves(params))
    return compiled.memory_analysis().temp_size_in_bytes / model
