"""Small leaves travel dense: biases, norms and scalars cost little, and their signs say little.

A sign step and a dense step have different units: the first moves a coordinate by the learning
rate, the second by the learning rate times the gradient. So this is no argument of the algorithms
but a combinator of two, each with a learning rate (and weight decay, and schedule) of its own, as
`warmup` is.
"""

import jax
import jax.numpy as jnp
import optax

from signax import _choices
from signax.signs import _sign


def dense_below(
    num_coordinates: int,
    inner: optax.GradientTransformation,
    *,
    dense: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Updates the leaves below a size by one chain and the others by another one.

    $$ u_\text{leaf} = \begin{cases} \text{dense} & d_\text{leaf} < N \\
                                     \text{inner} & d_\text{leaf} \ge N \end{cases} $$

    Around whole algorithms, each with a learning rate in its own units::

        signax.dense_below(
            256, signax.signum(1e-3, axis_name=axis), dense=signax.dense_sgd(0.1, axis_name=axis)
        )

    or around the link alone where what goes through it is a gradient in both,
    `dense_below(256, compressed_mean(axis), dense=average_gradients(axis))`.

    Args:
      num_coordinates: N. Leaves with fewer coordinates travel dense; 0 is none.
      inner: What updates the large leaves, network link included.
      dense: What updates the small ones, network link included: `dense_sgd`, `average_gradients`.

    Returns:
      A transformation with the state of `optax.partition`. A worker whose gradient holds a NaN or
      an infinity in any leaf abstains in both parts. One whose large leaves are all zero has
      nothing to vote on there, and still counts in the dense mean. `None` and empty leaves pass.

    Raises:
      ValueError: If `num_coordinates` is negative.
      TypeError: If it is no number, or an array: which leaves are sent depends on it.

    Example:
      >>> tx = signax.dense_below(2, signax.sign_sgd(0.5), dense=signax.dense_sgd(1.0))
      >>> params = {"bias": jnp.array([3.0]), "kernel": jnp.array([3.0, -4.0])}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates["bias"], updates["kernel"])
      [-3.] [-0.5  0.5]
    """
    _choices.require_static(num_coordinates, "dense_below", "num_coordinates")
    _choices.require_number(
        num_coordinates,
        "dense_below",
        "num_coordinates",
        "Write signax.dense_below(256, inner, dense=...).",
    )
    if not num_coordinates >= 0:  # NaN too
        raise ValueError(
            f"signax.dense_below: num_coordinates must not be negative, got {num_coordinates}. It"
            " is the size below which a leaf travels dense; 0 is none."
        )

    def labels(tree):
        return jax.tree.map(lambda x: "dense" if jnp.size(x) < num_coordinates else "inner", tree)

    parts = optax.partition({"inner": inner, "dense": dense}, labels)

    def update(updates, state, params=None, **extra_args):
        # Each part decides from its own leaves who abstains: a NaN in one must be seen in both.
        is_finite = _sign.all_finite(updates)
        marked = jax.tree.map(lambda u: jnp.where(is_finite, u, jnp.full_like(u, jnp.nan)), updates)
        return parts.update(marked, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(parts.init, update)
