r"""How fast? The right-hand sides of Theorems 1 to 4, for a given problem and step size.

f is bounded below by f* and smooth coordinate by coordinate,

$$ f(y) \le f(x) + \langle \nabla f(x), y - x \rangle + \sum_{i=1}^{d} \tfrac{L_i}{2} (y_i - x_i)^2,
   \qquad d \bar L = \sum_i L_i. $$

One step of size gamma lowers E f by gamma E||grad f||_rho - gamma^2 d L / 2 or more, and exactly by
that on a quadratic with Hessian diag(L) if no sign is 0; the rest is adding up. All arguments are
in the units of f and x; all functions are differentiable, in the step size too.
"""

import jax
import jax.numpy as jnp
import numpy as np


def theorem_1_bound(
    initial_gap: jax.typing.ArrayLike,
    smoothness: jax.typing.ArrayLike,
    learning_rate: jax.typing.ArrayLike,
    num_steps: jax.typing.ArrayLike,
) -> jax.Array:
    r"""Theorem 1, (10): signSGD with a constant step reaches a neighbourhood at rate 1/K.

    $$ \frac1K \sum_{k=0}^{K-1} E \lVert \nabla f(x_k) \rVert_\rho
       \le \frac{f(x_0) - f^*}{\gamma K} + \frac{\gamma d \bar L}{2} $$

    Assumes SPB, smoothness L_i, one worker, Algorithm 1 with Option 1. On a quadratic with Hessian
    diag(L), it is an equality if f* is replaced by E f(x_K).

    Args:
      initial_gap: f(x_0) - f*.
      smoothness: L_i, [..., d]; the sum over the last axis is d L-bar.
      learning_rate: gamma, above 0.
      num_steps: K, at least 1.

    Returns:
      The right-hand side, in the unit of the rho-norm; [...] and the others' shapes broadcast.

    Example:
      >>> print(signax.theory.theorem_1_bound(1.0, jnp.array([1.0, 3.0]), 0.1, 100))
      0.3

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Theorem 1.
    """
    return jnp.asarray(initial_gap) / (jnp.asarray(learning_rate) * real_count(num_steps)) + (
        jnp.asarray(learning_rate) * _total(smoothness) / 2.0
    )


def theorem_1_decreasing_bound(
    initial_gap: jax.typing.ArrayLike,
    smoothness: jax.typing.ArrayLike,
    initial_learning_rate: jax.typing.ArrayLike,
    num_steps: jax.typing.ArrayLike,
    *,
    as_printed: bool = True,
) -> jax.Array:
    r"""Theorem 1, (9): signSGD with gamma_0 / sqrt(k+1) has the rate log K / sqrt(K).

    $$ \min_{0 \le k < K} E \lVert \nabla f(x_k) \rVert_\rho \le
       \frac{f(x_0) - f^*}{\gamma_0 \sqrt K}
       + \frac{3 \gamma_0 d \bar L}{2} \frac{\log K}{\sqrt K} $$

    Assumes SPB, smoothness L_i, one worker, Algorithm 1 with Option 1.

    **False as printed at K = 1**, where log K = 0: with f = x^2/2, x_0 = 1, gamma_0 = 1 and no
    noise the left side is 1 and the right side 1/2. The proof needs 1 + 1/2 + ... + 1/K, which is
    at most 3 log K from K = 2 on. `as_printed=False` has 1 + log K in place of 3 log K: that holds
    for all K >= 1, and is smaller from K = 2 on.

    Args:
      initial_gap: f(x_0) - f*.
      smoothness: L_i, [..., d]; the sum over the last axis is d L-bar.
      initial_learning_rate: gamma_0, above 0, of `inverse_sqrt_schedule`.
      num_steps: K, at least 1; as printed, at least 2.
      as_printed: False for the bound that holds at K = 1 too.

    Returns:
      The right-hand side, in the unit of the rho-norm; [...] and the others' shapes broadcast.

    Example:
      >>> bound = signax.theory.theorem_1_decreasing_bound
      >>> print(bound(0.5, jnp.ones(1), 1.0, 1), bound(0.5, jnp.ones(1), 1.0, 1, as_printed=False))
      0.5 1.0

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Theorem 1.
    """
    num_steps = real_count(num_steps)
    log = jnp.log(num_steps)
    log = 3.0 * log if as_printed else 1.0 + log
    noise = jnp.asarray(initial_learning_rate) * _total(smoothness) * log / 2.0
    return (jnp.asarray(initial_gap) / initial_learning_rate + noise) / jnp.sqrt(num_steps)


def theorem_2_bound(
    initial_gap: jax.typing.ArrayLike,
    smoothness: jax.typing.ArrayLike,
    learning_rate: jax.typing.ArrayLike,
    num_steps: jax.typing.ArrayLike,
) -> jax.Array:
    r"""Theorem 2, constant step: refusing steps that raise f keeps the rate (10).

    Assumes SPB, smoothness L_i, one worker, Algorithm 1 with Option 2: f itself can be evaluated.
    Left and right side are those of `theorem_1_bound`.

    Args:
      initial_gap: f(x_0) - f*.
      smoothness: L_i, [..., d]; the sum over the last axis is d L-bar.
      learning_rate: gamma, above 0.
      num_steps: K, at least 1.

    Returns:
      The right-hand side of `theorem_1_bound`.

    Example:
      >>> print(signax.theory.theorem_2_bound(1.0, jnp.array([1.0, 3.0]), 0.1, 100))
      0.3

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Theorem 2.
    """
    return theorem_1_bound(initial_gap, smoothness, learning_rate, num_steps)


def theorem_2_decreasing_bound(
    initial_gap: jax.typing.ArrayLike,
    smoothness: jax.typing.ArrayLike,
    initial_learning_rate: jax.typing.ArrayLike,
    num_steps: jax.typing.ArrayLike,
) -> jax.Array:
    r"""Theorem 2: refusing steps that raise f bounds the average gradient, without the logarithm.

    $$ \frac1K \sum_{k=0}^{K-1} E \lVert \nabla f(x_k) \rVert_\rho \le
       \frac{1}{\sqrt K} \left[ \frac{f(x_0) - f^*}{\gamma_0} + \gamma_0 d \bar L \right] $$

    Assumes SPB, smoothness L_i, one worker, Algorithm 1 with Option 2 and gamma_0 / sqrt(k+1).

    Args:
      initial_gap: f(x_0) - f*.
      smoothness: L_i, [..., d]; the sum over the last axis is d L-bar.
      initial_learning_rate: gamma_0, above 0, of `inverse_sqrt_schedule`.
      num_steps: K, at least 1.

    Returns:
      The right-hand side, in the unit of the rho-norm; [...] and the others' shapes broadcast.

    Example:
      >>> print(signax.theory.theorem_2_decreasing_bound(1.0, jnp.array([1.0, 3.0]), 0.5, 100))
      0.4

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Theorem 2.
    """
    step = jnp.asarray(initial_learning_rate)
    bound = jnp.asarray(initial_gap) / step + step * _total(smoothness)
    return bound / jnp.sqrt(real_count(num_steps))


def theorem_3_bound(
    initial_gap: jax.typing.ArrayLike,
    smoothness: jax.typing.ArrayLike,
    learning_rate: jax.typing.ArrayLike,
    num_steps: jax.typing.ArrayLike,
) -> jax.Array:
    r"""Theorem 3, (12): majority vote with a constant step; M is in the norm, not in the bound.

    $$ \frac1K \sum_{k=0}^{K-1} E \lVert \nabla f(x_k) \rVert_{\rho_M}
       \le \frac{f(x_0) - f^*}{\gamma K} + \frac{\gamma d \bar L}{2} $$

    Assumes SPB, smoothness L_i, and M workers with shared data: independent signs, one rho.

    2l - 1 workers and 2l have the same norm on the left and the same bound. Yet with 2l ties are
    steps of zero, the last term could be smaller by the factor 1 - Prob(tie), and a constant step
    ends on a lower plateau (`expected_majority`).

    Args:
      initial_gap: f(x_0) - f*.
      smoothness: L_i, [..., d]; the sum over the last axis is d L-bar.
      learning_rate: gamma, above 0.
      num_steps: K, at least 1.

    Returns:
      The right-hand side, in the unit of the rho_M-norm; [...] and the others' shapes broadcast.

    Example:
      >>> print(signax.theory.theorem_3_bound(1.0, jnp.array([1.0, 3.0]), 0.1, 100))
      0.3

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Theorem 3.
    """
    return theorem_1_bound(initial_gap, smoothness, learning_rate, num_steps)


def theorem_3_decreasing_bound(
    initial_gap: jax.typing.ArrayLike,
    smoothness: jax.typing.ArrayLike,
    initial_learning_rate: jax.typing.ArrayLike,
    num_steps: jax.typing.ArrayLike,
    *,
    as_printed: bool = True,
) -> jax.Array:
    r"""Theorem 3, (11): majority vote with gamma_0 / sqrt(k+1).

    $$ \min_{0 \le k < K} E \lVert \nabla f(x_k) \rVert_{\rho_M} \le
       \frac{f(x_0) - f^*}{\gamma_0 \sqrt K}
       + \frac{3 \gamma_0 d \bar L}{2} \frac{\log K}{\sqrt K} $$

    Assumes what `theorem_3_bound` does. **False as printed at K = 1**, like (9): see
    `theorem_1_decreasing_bound`.

    Args:
      initial_gap: f(x_0) - f*.
      smoothness: L_i, [..., d]; the sum over the last axis is d L-bar.
      initial_learning_rate: gamma_0, above 0, of `inverse_sqrt_schedule`.
      num_steps: K, at least 1; as printed, at least 2.
      as_printed: False for 1 + log K in place of 3 log K, which holds at K = 1 too.

    Returns:
      The right-hand side of `theorem_1_decreasing_bound`, in the unit of the rho_M-norm.

    Example:
      >>> print(signax.theory.theorem_3_decreasing_bound(1.0, jnp.ones(4), 0.5, 1))
      2.0

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Theorem 3.
    """
    return theorem_1_decreasing_bound(
        initial_gap, smoothness, initial_learning_rate, num_steps, as_printed=as_printed
    )


def theorem_4_bound(
    initial_gap: jax.typing.ArrayLike,
    sigma: jax.typing.ArrayLike,
    smoothness: jax.typing.ArrayLike,
    num_coordinates: jax.typing.ArrayLike,
    num_steps: jax.typing.ArrayLike,
) -> jax.Array:
    r"""Theorem 4: SSDM with the hyperparameters of `theorem_4_hyperparameters`, at rate K^{-1/4}.

    $$ \frac1K \sum_{k=0}^{K-1} E \lVert \nabla f(x_k) \rVert \le \frac{16}{K^{1/4}} \left[
       f(x_0) - f^* + \tilde\sigma + \tilde L \sqrt d + \frac{\tilde L d}{\sqrt K} \right], \quad
       \tilde\sigma = \frac1M \sum_n \sigma_n, \; \tilde L = \frac1M \sum_n L_n $$

    Assumes unbiased gradients with E||noise||^2 <= sigma_n^2 on worker n, and L_n-smooth f_n in the
    l2 norm: here L_n is one number per worker, not per coordinate.

    **It holds for homogeneous workers (f_n = f) only, and is false as printed for heterogeneous
    ones.** The stochastic sign does not see how large a worker's gradient is. With f_1 = (x-2)^2/4,
    f_2 = 3(x+2)^2/4 and no noise, from x_0 = sqrt(2) - 1 the two signs cancel at each step: SSDM
    never moves, |f'| = 1.41 for ever, and the bound is below that from K = 264,000 on. The authors'
    2026 revision narrows the theorem; `signax.Scale(shared=True)` is the cure.

    Args:
      initial_gap: f(x_0) - f*, f the mean of the workers' losses.
      sigma: sigma_n, [..., M] or a number.
      smoothness: L_n, [..., M] or a number.
      num_coordinates: d.
      num_steps: K, at least 1.

    Returns:
      The right-hand side, in the unit of the l2 norm; [...] and the others' shapes broadcast.

    Example:
      >>> print(signax.theory.theorem_4_bound(1.0, 0.5, 1.0, 4, 10_000))
      5.664

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Theorem 4; version 6 (2026) of the same.
    """
    d, steps = jnp.asarray(real_count(num_coordinates)), jnp.asarray(real_count(num_steps))
    mean_sigma, mean_smoothness = _mean(sigma), _mean(smoothness)
    smooth = mean_smoothness * (jnp.sqrt(d) + d / jnp.sqrt(steps))
    return 16.0 * (jnp.asarray(initial_gap) + mean_sigma + smooth) / jnp.sqrt(jnp.sqrt(steps))


def real_count(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """A count of any size: JAX's integers end at 2^31, and NumPy's larger ones would wrap."""
    if isinstance(count, (int, np.integer)):
        return float(count)
    return count.astype(float) if isinstance(count, np.ndarray) else count


def _total(smoothness: jax.typing.ArrayLike) -> jax.Array:
    return jnp.sum(jnp.atleast_1d(smoothness), axis=-1)


def _mean(per_worker: jax.typing.ArrayLike) -> jax.Array:
    return jnp.mean(jnp.atleast_1d(per_worker), axis=-1)
