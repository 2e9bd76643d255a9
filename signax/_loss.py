"""The loss function in one signature, and what it must return."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def uniform(loss_fn: Callable, has_aux: bool) -> Callable:
    """One signature: (params, batch, model_state, key) -> loss, (model_state, aux)."""

    def of_all(params, batch, model_state, key):
        given = {"model_state": model_state, "key": key}
        result = loss_fn(params, batch, **{k: v for k, v in given.items() if v is not None})
        has_state = model_state is not None
        loss, extra = _pair_of(result, has_aux, has_state) if has_aux or has_state else (result, {})
        if has_state:
            old = model_state
            model_state, aux = _pair_of(extra, has_aux, has_state) if has_aux else (extra, {})
            _require_same_model_state(model_state, old)
        else:
            aux = extra
        return _require_scalar(loss), (model_state, _require_metrics(aux))

    return of_all


def _pair_of(result: Any, has_aux: bool, has_state: bool) -> Any:
    if isinstance(result, (tuple, list)) and len(result) == 2:
        return result
    inner = "(model_state, aux)" if has_aux and has_state else "aux" if has_aux else "model_state"
    asked = " and ".join(["has_aux=True"] * has_aux + ["a model state"] * has_state)
    raise ValueError(
        f"signax: with {asked}, loss_fn must return the pair (loss, {inner}), got"
        f" {jax.tree.map(jnp.shape, result)} (shapes)."
    )


def _require_scalar(loss: Any) -> Any:
    if not jax.tree_util.all_leaves([loss]):
        raise ValueError(
            f"signax: loss_fn returned a {type(loss).__name__} and not a scalar: write has_aux=True"
            " if it returns (loss, aux), or make the state with model_state= if it returns (loss,"
            " model_state)."
        )
    if jnp.ndim(loss):
        raise ValueError(
            f"signax: loss_fn returned a loss of shape {jnp.shape(loss)}; it must be a scalar, such"
            " as the mean over the worker's examples."
        )
    return loss


def _require_same_model_state(new: Any, old: Any) -> None:
    if jax.tree.structure(new) != jax.tree.structure(old):
        raise ValueError(
            "signax: loss_fn returned a model state of another structure than it was given:"
            f" {jax.tree.structure(new)} in place of {jax.tree.structure(old)}. Return all of it,"
            " changed or not."
        )


def _require_metrics(aux: Any) -> dict[str, Any]:
    if not isinstance(aux, dict) or any(map(_is_no_scalar, aux.values())):
        raise ValueError(
            "signax: with has_aux=True, loss_fn must return (loss, aux) with aux a flat dict of"
            f' scalars, such as {{"accuracy": 0.9}}, got {jax.tree.map(jnp.shape, aux)}. Every'
            " entry becomes a metric: its mean over the workers."
        )
    for name in ("loss", "num_abstained"):
        if name in aux:
            raise ValueError(
                f"signax: aux[{name!r}]: the step itself reports {name!r}; rename yours."
            )
    return aux


def _is_no_scalar(x: Any) -> bool:
    return not jax.tree_util.all_leaves([x]) or jnp.shape(x) != ()
