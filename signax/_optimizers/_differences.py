"""Compressed differences of gradients: EF21 and DIANA, for workers that differ."""

import functools
from typing import Any

import jax
import optax
from jax.core import Tracer

from signax import _choices, _differences, _memory, _network
from signax._optimizers import _steps
from signax._workers import AxisName
from signax.signs import _scales, _sign, _stochastic
from signax.wire import _server


def ef21(
    learning_rate: optax.ScalarOrSchedule,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    axis_name: AxisName | None = None,
    scope: _sign.Scope = "leaf",
    shared: bool = True,
    key: jax.typing.ArrayLike = 0,
    wire: _server.Wire = "packed",
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""EF21 with momentum on signs: each worker says, in scaled signs, how its momentum changed.

    $$ v^n_k = \beta v^n_{k-1} + (1 - \beta) \hat g^n_k, \quad v^n_{-1} = \hat g^n_0, \qquad
       c^n_k = R^n_k \operatorname{sign}(v^n_k - h^n_{k-1}), \qquad
       h^n_k = h^n_{k-1} + c^n_k, \quad h^n_{-1} = 0 $$

    $$ h_k = h_{k-1} + \frac{1}{M} \sum_{n=1}^{M} c^n_k, \qquad x_{k+1} = x_k - \gamma_k h_k $$

    h^n is what everyone knows of worker n's momentum, and h their mean. Where the workers differ
    their gradients stay large at the solution, but they stop changing, and then h is exact: a
    constant learning rate reaches a stationary point of the mean loss without noise.

    **Which scale.** With `shared=False` R^n is the worker's own mean magnitude |v^n - h^n| in each
    leaf, as in the paper: the scaled sign shrinks what is left over by at least 1 - 1/d. With
    `shared=True` it is the *mean* of these over the workers, one number for all. Then what all
    workers together leave over is

    $$ \sum_n \lVert p^n - R \operatorname{sign} p^n \rVert^2 = \sum_n \lVert p^n \rVert^2
       - 2 R \sum_n \lVert p^n \rVert_1 + M d R^2 \; \overset{R = \text{mean}}{=} \;
       \sum_n \lVert p^n \rVert^2 - \frac{(\sum_n \lVert p^n \rVert_1)^2}{M d}, $$

    smallest for that R: it is the scaled sign of all workers' differences laid end to end, and
    shrinks their sum by at least 1 - 1/(M d). EF21's proof uses this sum alone, so it holds with d
    replaced by M d. The largest of the scales would not do: with one worker at (1, ..., 1) and the
    others at zero what is left over *grows* M-1 times.

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      beta: Decay of the momentum, 1 - eta in the paper, in [0, 1); 0 is EF21 itself.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      scope: What a scale is a mean of: "leaf" or "global".
      shared: Whether R is the same for all workers. True: one bit per coordinate up and
        ceil(log2(M+1)) down, and one psum of the scales. False: one bit and a scale per leaf up, 32
        bits per coordinate down.
      key: An integer seed or a PRNG key for the coins of zero coordinates.
      wire: "packed", "radix", "lanes" or "float32": `average_signs`; with `shared=False` only
        "packed".
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the momentum is kept; None is the parameters'. The
        estimates are at least float32: what rounding took from h would never come back.

    Returns:
      The transformation. Three trees of memory: v^n, h^n and h. A zero coordinate of the difference
      is a coin drawn on the worker, and what it says is taken back later. A worker whose gradient
      holds a NaN or an infinity abstains: its v^n and h^n stay, and h moves by the others' changes
      divided by M, so that it remains the mean of all h^n. Without voters the update is zero and h
      stays. `change_num_workers` keeps h the mean of the h^n.

    Raises:
      ValueError: For beta outside [0, 1), an unknown scope, wire or `on_nonfinite`, or another wire
        than "packed" with `shared=False`; at update, for an unbound axis or gradients already
        summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.ef21(0.5, beta=0.5)
      >>> params = jnp.array([1.0, -3.0])
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...   updates, state = tx.update(params, state, params)
      ...   print(updates)
      [-1.  1.]
      [-0.5  1.5]

    References:
      Richtarik, Sokolov and Fatkhullin, EF21: A New, Simpler, Theoretically Better, and Practically
      Faster Error Feedback, NeurIPS 2021, arXiv:2106.05203, Algorithm 2; Fatkhullin, Tyurin and
      Richtarik, Momentum Provably Improves Error Feedback!, NeurIPS 2023, arXiv:2305.15155,
      Algorithm 1 (EF21-SGDM).
    """
    _memory.require_decay(beta, "ef21", "beta")
    _choices.require(scope, _sign.Scope, "ef21", "scope")
    momentum = _memory.ema_from_first_gradient(beta, accumulator_dtype=accumulator_dtype)
    say = functools.partial(
        _sign.signs_and_scales, axis_name=axis_name, scope=scope, is_shared=shared
    )
    compressor = _differences.Compressor(
        functools.partial(_sign.init_state, key=key), say, is_shared=shared
    )
    return optax.chain(
        _memory.guarded(momentum, on_nonfinite),
        _differences.compressed_differences(
            compressor, 1.0, axis_name, key, wire, on_nonfinite, "ef21"
        ),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )


def diana(
    learning_rate: optax.ScalarOrSchedule,
    alpha: jax.typing.ArrayLike = 0.1,
    momentum: jax.typing.ArrayLike | None = None,
    *,
    key: jax.typing.ArrayLike = 0,
    axis_name: AxisName | None = None,
    scale: _scales.Scale | float = _scales.Scale("linf", "leaf", shared=True),
    wire: _server.Wire = "packed",
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""DIANA on signs: each worker says, in stochastic signs, how its gradient differs from h.

    $$ c^n_k = R^n_k \, \widetilde{\operatorname{sign}}(\hat g^n_k - h^n_k), \qquad
       h^n_{k+1} = h^n_k + \alpha c^n_k, \qquad
       \hat g_k = h_k + \frac{1}{M} \sum_{n=1}^{M} c^n_k, \qquad
       h_{k+1} = h_k + \frac{\alpha}{M} \sum_{n=1}^{M} c^n_k $$

    $$ v_k = \mu v_{k-1} + \hat g_k, \qquad x_{k+1} = x_k - \gamma_k v_k $$

    The stochastic sign times R is unbiased, so ghat is an unbiased estimate of the mean gradient,
    and its noise is of the size of the differences: it vanishes as h^n learns worker n's gradient,
    however different the workers are. The paper's Q says 0 or +-R (ternary); a sign of one bit has
    the same mean and a larger variance.

    **Which scale.** To be unbiased R must be at least every |ghat^n - h^n|, so here, unlike in
    `ef21`, the shared scale is the *largest* of the workers' (`Scale(shared=True)`). Own scales
    (`shared=False`) travel with the signs.

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      alpha: How fast h^n follows the gradient, in (0, 1]. The theory asks for alpha <= 1/(1 + w),
        where w + 1 = d R^2 / ||p||^2, p = ghat^n - h^n, is the noise of one sign: 10 to 30 for the
        linf norm of a leaf, d for the l2 norm of d coordinates. Too large an alpha feeds that noise
        back into h^n, and the estimates grow without bound.
      momentum: mu, the decay of a heavy-ball trace behind the network (`optax.trace`); None is
        none.
      key: An integer seed or a PRNG key for the stochastic signs, the same on all workers.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      scale: R (`Scale`). Shared, or a fixed number: one bit per coordinate up, ceil(log2(M+1))
        down, and with `Scale` one pmax of the scales. Own: one bit and a scale per leaf up, 32 bits
        per coordinate down.
      wire: "packed", "radix", "lanes" or "float32": `average_signs`; with own scales only "packed".
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the trace of `momentum` is kept; None is the
        parameters'. The estimates are at least float32: what rounding took from h would never come
        back.

    Returns:
      The transformation. Two trees of memory, h^n and h, and the trace. A worker whose gradient
      holds a NaN or an infinity abstains: its h^n stays, and h moves by the others' changes divided
      by M, so that it remains the mean of all h^n. Without voters the update is zero and h stays.
      `change_num_workers` keeps h the mean of the h^n.

    Raises:
      ValueError: For alpha outside (0, 1], a momentum outside [0, 1), an unknown scale, wire or
        `on_nonfinite`, or own scales with blocks or another wire than "packed"; at update, for an
        unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.diana(0.5, alpha=0.5)
      >>> params = jnp.array([-2.0])
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> print(updates, state[0].estimate)
      [1.] [-1.]

    References:
      Mishchenko, Gorbunov, Takac and Richtarik, Distributed Learning with Compressed Gradient
      Differences, 2019, arXiv:1901.09269, Algorithm 1 (DIANA).
    """
    _require_rate(alpha)
    _stochastic.require_scale(scale, "diana")
    is_shared = not isinstance(scale, _scales.Scale) or scale.shared
    block = _scales.block_of(scale)
    if not is_shared and block is not None:
        raise ValueError(
            "signax.diana: own scales travel one for each leaf, and"
            f" Scale(scope={block}) has one for each block of {block} coordinates. Use"
            ' scope="leaf" or scope="global", or shared=True.'
        )
    say = functools.partial(_stochastic.signs_and_scales, axis_name=axis_name, scale=scale)
    compressor = _differences.Compressor(
        functools.partial(_stochastic.init_state, key=key, scale=scale), say, is_shared
    )
    return optax.chain(
        _differences.compressed_differences(
            compressor, alpha, axis_name, key, wire, on_nonfinite, "diana"
        ),
        *_steps.heavy_ball(momentum, accumulator_dtype, "diana"),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )


def _require_rate(alpha: jax.typing.ArrayLike) -> None:
    _choices.require_number(alpha, "diana", "alpha")
    if not isinstance(alpha, Tracer) and not 0 < alpha <= 1:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"signax.diana: alpha must be in (0, 1], got {alpha}. It is the share of a difference"
            " by which h follows; the theory's is 1/(1 + w), 0.03 to 0.1 for the linf norm of a"
            " leaf."
        )
