"""(a) One worker alone: each kernel beside what memory allows and beside the textbook.

The floor reads (and writes) the same bytes and does nothing else. Whatever is as large as the model
is donated: a fresh array above 32 MB costs page faults, five times the work itself. The textbook's
arrays between its steps are its own affair.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import signax
from signax.experiments.bench import c_loop, model
from signax.experiments.bench.timing import Group
from signax.wire import _bits, _radix

_MEMORY, _TEXTBOOK, _OURS = "memory", "textbook", "signax"


class Donating:
    """A call that donates its first argument and keeps what comes back for the next one."""

    def __init__(self, fn: Callable[..., Any], state: Any, *args: Any):
        """Jits `fn(state, *args) -> state`."""
        self._fn = jax.jit(fn, donate_argnums=0)
        self._state, self._args = jax.tree.map(jnp.array, state), args

    def __call__(self) -> Any:
        self._state = self._fn(self._state, *self._args)
        return self._state


def groups(size: int, num_leaves: int, *, is_quick: bool = False) -> Iterator[Callable[[], Group]]:
    """The groups for arrays of `size` coordinates, each made when its turn comes.

    Args:
      size: How many coordinates.
      num_leaves: Of a tree with many leaves, for the step of one worker.
      is_quick: Whether to leave out what only repeats itself with other numbers.
    """
    yield lambda: _sign_and_pack(size)
    yield lambda: _stochastic_sign_and_pack(size)
    for num_workers in (8,) if is_quick else (4, 8, 16):
        yield lambda m=num_workers: _count(size, m)
    for radix in (3,) if is_quick else (3, 5, 9):
        yield lambda r=radix: _code_in_radix(size, r)
    yield lambda: _unpack_and_apply(size)
    for n in (num_leaves,) if is_quick else (8, num_leaves):
        yield lambda n=n: _local_step(size, n)
        if not is_quick:
            yield lambda n=n: _local_update(size, n)


def _sign_and_pack(size: int) -> Group:
    g = _normal(size)
    calls = {
        _MEMORY: _call(jnp.sum, g),
        _TEXTBOOK: _call(lambda g: jnp.sign(g).astype(jnp.int8), g),
        _OURS: _call(lambda g: signax.pack_bits(g > 0), g),
        "signax, zeros and NaN told apart": _call(_bits.pack_signs, g),
    }
    if jax.default_backend() == "cpu" and (in_c := c_loop.packing(g)):
        calls["a loop in C"] = in_c
    return _group("sign + pack", size, calls)


def _stochastic_sign_and_pack(size: int) -> Group:
    g, key = _normal(size), jnp.array([0, 1], jnp.uint32)

    def textbook(key, g):
        p = 0.5 + 0.5 * g / jnp.linalg.norm(g)
        return _textbook_pack(jax.random.uniform(jax.random.wrap_key_data(key), g.shape) < p)

    def ours(key, g):
        return signax.pack_bits(signax.stochastic_sign(key, g) > 0)

    def twice(g):  # the norm, then the signs; the barrier keeps XLA from reading once
        first, g = jax.lax.optimization_barrier((jnp.sum(g), g))
        return first + jnp.sum(g * first)

    return _group(
        "stochastic sign + pack",
        size,
        {
            _MEMORY: _call(twice, g),
            _TEXTBOOK: _call(textbook, key, g),
            _OURS: _call(ours, key, g),
        },
    )


def _count(size: int, num_workers: int) -> Group:
    shape = (num_workers, -(-size // 8))
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def textbook(rows):
        bits = jnp.unpackbits(rows, axis=1, bitorder="little")
        return _textbook_pack(jnp.sum(bits, 0, dtype=jnp.int32) * 2 > num_workers)

    def ours(rows):
        return _bits.compare_planes(_bits.count_planes(rows), num_workers // 2)[0]

    def memory(rows):
        return jax.lax.reduce(rows, np.uint8(0), jax.lax.bitwise_xor, (0,))

    calls = {_MEMORY: memory, _TEXTBOOK: textbook, _OURS: ours}
    calls = {name: _call(fn, rows) for name, fn in calls.items()}
    return _group(f"majority of {num_workers}", size, calls)


def _code_in_radix(size: int, radix: int) -> Group:
    """Of values that are planes already, in rows as for four servers: to numbers, and back."""
    values = np.random.default_rng(0).integers(0, radix, (4, -(-size // 32) * 8), np.uint8)
    bits = [values >> i & 1 for i in range((radix - 1).bit_length())]
    planes = [jnp.asarray(np.packbits(x, axis=1, bitorder="little")) for x in bits]
    encode = lambda *planes: _radix.encode(planes, radix)  # noqa: E731
    decode = lambda *numbers: _radix.decode(numbers, radix, planes[0].shape[1])  # noqa: E731
    num_digits = _radix.digits_in_number(radix)

    def textbook(*planes):
        bits = jnp.unpackbits(jnp.stack(planes), axis=2, bitorder="little").astype(jnp.uint16)
        digits = jnp.sum(bits << jnp.arange(len(planes), dtype=jnp.uint16)[:, None, None], axis=0)
        digits = jnp.pad(digits.ravel(), (0, -digits.size % num_digits)).reshape(-1, num_digits)
        return jnp.sum(digits * radix ** jnp.arange(num_digits), axis=1)

    calls = {
        _MEMORY: _call(lambda *planes: [plane ^ 1 for plane in planes], *planes),
        _TEXTBOOK: _call(textbook, *planes),
        _OURS: _call(encode, *planes),
        "signax, back": _call(decode, *jax.jit(encode)(*planes)),
    }
    return _group(f"values in radix {radix}", size, calls)


def _unpack_and_apply(size: int) -> Group:
    params, words = _normal(size), signax.pack_bits(_normal(size) > 0)
    signs = jnp.where(signax.unpack_bits(words, size), 1, -1).astype(jnp.int8)

    def ours(params, words):
        is_positive = signax.unpack_bits(words, size)
        return params - jnp.where(is_positive, jnp.float32(1e-3), jnp.float32(-1e-3))

    return _group(
        "unpack + apply",
        size,
        {
            _MEMORY: Donating(lambda p: p + 1, params),
            _TEXTBOOK: Donating(lambda p, s: p - 1e-3 * s, params, signs),
            _OURS: Donating(ours, params, words),
        },
    )


def _local_step(size: int, num_leaves: int) -> Group:
    params = jax.tree.map(jnp.asarray, model.tree(size, num_leaves))
    gradient = jax.tree.map(jnp.asarray, model.tree(size, num_leaves, seed=1))
    calls: dict[str, Any] = {
        _MEMORY: Donating(_pass_over_params_and_momentum, (params, params), gradient)
    }
    for name, tx in _local_optimizers().items():
        calls[name] = Donating(_stepping(tx), (params, tx.init(params)), gradient)
    title = f"one worker's whole step, {num_leaves} leaves"
    return Group(f"{title}, {size:,}", size, calls, _MEMORY, "optax.signum")


def _local_update(size: int, num_leaves: int) -> Group:
    """`tx.update` alone, with fresh arrays for what it returns: as Optax is often timed."""
    gradient = jax.tree.map(jnp.asarray, model.tree(size, num_leaves, seed=1))
    calls = {
        name: _call(lambda g, state, tx=tx: tx.update(g, state, g), gradient, tx.init(gradient))
        for name, tx in _local_optimizers().items()
    }
    title = f"one worker's update into fresh arrays, {num_leaves} leaves, {size:,}"
    return Group(title, size, calls, None, "optax.signum")


def _local_optimizers() -> dict[str, optax.GradientTransformation]:
    return {
        "optax.signum": optax.signum(1e-3),
        "signax.signum": signax.signum(1e-3),
        'signax.signum, ties="random"': signax.signum(1e-3, ties="random"),
        "signax.ssdm": signax.ssdm(1e-3),
    }


def _pass_over_params_and_momentum(state: Any, gradient: Any) -> Any:
    """Reads parameters, momentum and gradient, writes the first two."""
    params, momentum = state
    add = lambda x, g: jax.tree.map(jnp.add, x, g)  # noqa: E731
    return add(params, gradient), add(momentum, gradient)


def _stepping(tx: optax.GradientTransformation) -> Callable[[Any, Any], Any]:
    def step(state, gradient):
        params, opt_state = state
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def _textbook_pack(mask: jax.Array) -> jax.Array:
    return jnp.packbits(mask, bitorder="little")


def _group(title: str, size: int, calls: dict[str, Any]) -> Group:
    return Group(f"{title}, {size:,}", size, calls, _MEMORY, _TEXTBOOK)


def _call(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    jitted = jax.jit(fn)
    return lambda: jitted(*args)


def _normal(size: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(size, np.float32))
