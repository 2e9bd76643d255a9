r"""Stochastic quantisers: a random level whose mean is the gradient, packed in whole bits.

$$ Q_s(g)_i = R \cdot \operatorname{sign}(g_i) \cdot \frac{\xi_i}{s}, \qquad
   \xi_i \in \{\lfloor a_i \rfloor, \lfloor a_i \rfloor + 1\}, \quad E[\xi_i] = a_i =
   \frac{s |g_i|}{R} $$

so that E[Q_s(g)] = g. There are 2s + 1 values: ceil(log2(2s + 1)) bits. With s = 1 it is a ternary
stochastic sign. Integers are compared, not floats, as for the stochastic sign.

Sources: Alistarh et al., "QSGD", NeurIPS 2017, arXiv:1610.02132; Wen et al., "TernGrad", NeurIPS
2017, arXiv:1705.07878.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from signax import _choices, _network, _scaled, _workers
from signax.baselines import _exchange, _link
from signax.signs import _norms, _random
from signax.wire import _bits

_TAG = 0x51534744  # this link's place in the address of a random word


def average_quantized(
    axis_name: _workers.AxisName | None,
    *,
    levels: int = 7,
    norm: _norms.Norm = "l2",
    down_dtype: jax.typing.DTypeLike = "float32",
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
) -> optax.GradientTransformation:
    r"""The mean of the workers' gradients, each rounded at random to one of 2s + 1 values.

    $$ u = \frac{1}{M} \sum_{n=1}^{M} Q_s(g^n), \qquad
       Q_s(g)_i = R \operatorname{sign}(g_i) \frac{\xi_i}{s}, \quad E[Q_s(g)] = g $$

    Up go B = ceil(log2(2s + 1)) bits per coordinate and R for each leaf, packed, to the servers of
    the slices. Down goes their mean in `down_dtype`, rounded to it but not quantised again. One
    worker sends (B + 32)(M - 1)/M bits per coordinate (B + 16 with bfloat16), padding, scales and
    the votes' flags aside. The paper's Elias code, shorter where most levels are zero, has no fixed
    length and so no place in a compiled program.

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker (still quantised).
      levels: s, at least 1 and at most 127. 1, 3, 7, 127 use 2, 3, 4, 8 bits in full.
      norm: R, in the gradient's units: each leaf's own "l2" (QSGD) or "linf" (TernGrad).
      down_dtype: The floating dtype in which the mean travels down.
      key: An integer seed or a PRNG key, the same on all workers. Draws are addressed by (key,
        step, worker, leaf path, position): two such links need different keys.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.

    Returns:
      A transformation that keeps shapes and dtypes; its updates are the same on all workers. A zero
      coordinate is sent as zero, and so is a leaf whose R is 0. A worker whose tree holds a NaN or
      an infinity abstains; without any other the update is zero. An empty tree passes.

    Raises:
      ValueError: For levels, norm, dtype or `on_nonfinite` that cannot be; at update, if an axis is
        not bound, or if the gradients were already summed over the workers.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.average_quantized(None, levels=1, norm="linf")
      >>> g = jnp.array([3.0, 0.0, -3.0])
      >>> print(tx.update(g, tx.init(g))[0])
      [ 3.  0. -3.]

    References:
      Alistarh, Grubic, Li, Tomioka and Vojnovic, QSGD: Communication-Efficient SGD via Gradient
      Quantization and Encoding, NeurIPS 2017, arXiv:1610.02132, section 3.1 and Algorithm 1.
    """
    name = "baselines.average_quantized"
    _link.require_positive_integer(levels, name, "levels", "It is s: 1 is TernGrad's, 7 is 4 bits.")
    if levels > 127:
        raise ValueError(f"signax.{name}: levels must be at most 127 (8 bits), got {levels}.")
    _choices.require(norm, _norms.Norm, name, "norm")
    _scaled.require_floating(down_dtype, name)
    num_bits = int(2 * levels).bit_length()

    def exchange(updates, is_voting, state):
        leaves = jax.tree.leaves(updates)
        words = _random.link_words(state.key, _TAG, state.count, _workers.worker_index(axis_name))
        words = jax.tree.leaves(_random.tree_words(words, updates))
        norms = [_norms.norm_of([leaf], norm) for leaf in leaves]
        codes = [_codes(words[i], leaf, norms[i], levels) for i, leaf in enumerate(leaves)]
        payloads = [_pack(code, num_bits) for code in codes]
        scales = jnp.array([_norms.value(r) for r in norms])
        decode = functools.partial(_decode, levels)
        mean, voters = _exchange.mean(
            payloads, scales, is_voting, updates, decode, down_dtype, axis_name
        )
        return mean, voters, None, None

    return _link.make(
        name, axis_name, exchange, has_feedback=False, key=key, on_nonfinite=on_nonfinite
    )


def _codes(words: jax.Array, g: jax.Array, norm: _norms.Norms, levels: int) -> jax.Array:
    """level + s, with levels from -s to s: uint8[size]."""
    mantissa = jnp.where(norm.mantissa > 0, norm.mantissa, 1.0)
    magnitude = jnp.abs(g.reshape(-1)).astype(jnp.float32) * (1.0 / norm.unit) * (levels / mantissa)
    magnitude = jnp.minimum(magnitude, levels)
    low = jnp.floor(magnitude)
    # P(w < t) = t / 2^32 for a random uint32 w; the largest float32 below 1 is 1 - 2^-24.
    threshold = ((magnitude - low) * 2.0**32).astype(jnp.uint32)
    is_up = _random.random_words(words, magnitude.size) < threshold
    level = low.astype(jnp.int32) + is_up.astype(jnp.int32)
    return (jnp.where(g.reshape(-1) < 0, -level, level) + levels).astype(jnp.uint8)


def _pack(codes: jax.Array, num_bits: int) -> jax.Array:
    """The bit planes of the codes, side by side: uint8[ceil(size / 8), B]."""
    return jnp.stack([_bits.pack_bits((codes >> b) & 1) for b in range(num_bits)], axis=1)


def _decode(levels: int, planes: jax.Array, scale: jax.Array) -> jax.Array:
    bits = jnp.unpackbits(planes[:, :, None], axis=2, bitorder="little").astype(jnp.int32)
    weights = 2 ** jnp.arange(planes.shape[1], dtype=jnp.int32)
    level = jnp.sum(bits * weights[None, :, None], axis=1) - levels
    return level.astype(jnp.float32) * (scale / levels)
