"""(c) Whole steps, and exchanges alone, on the devices at hand.

All contestants take the same step of the same network; only the network link differs. Every call is
waited for, so no two programs are ever in flight.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import signax
from signax import baselines
from signax.experiments.bench import model
from signax.experiments.bench.settings import Settings
from signax.experiments.bench.timing import Call, Group
from signax.experiments.errors import unknown_name
from signax.experiments.resolve import resolve
from signax.experiments.workers import AXIS_NAME
from signax.wire import _hlo

_NONE, _FLOAT32 = "no communication", "float32 pmean"
_FLAT = "float32 pmean of one flat array"
_LEARNING_RATE = 1e-4
Link = optax.GradientTransformation


def links() -> dict[str, Link]:
    """The network links that take part in a step.

    PowerSGD needs matrices, as in the network; the tree of many leaves holds vectors, which it
    sends whole.
    """
    return {
        _FLOAT32: _stateless(lambda u: jax.lax.pmean(u, AXIS_NAME)),
        "bfloat16 pmean": _stateless(_bfloat16_mean),
        "int8 psum of signs": _stateless(_int8_majority),
        'majority, ties="random"': signax.majority_vote(AXIS_NAME, ties="random"),
        'majority, ties="zero"': signax.majority_vote(AXIS_NAME, ties="zero"),
        'majority, ties="zero", radix': signax.majority_vote(AXIS_NAME, wire="radix"),
        "ssdm": _without_step(signax.ssdm(1.0, axis_name=AXIS_NAME)),
        "ssdm, radix": _without_step(signax.ssdm(1.0, axis_name=AXIS_NAME, wire="radix")),
        'majority, ties="random", lanes': signax.majority_vote(
            AXIS_NAME, ties="random", wire="lanes"
        ),
        "ssdm, lanes": _without_step(signax.ssdm(1.0, axis_name=AXIS_NAME, wire="lanes")),
        "bfloat16 as bytes": baselines.average_bfloat16(AXIS_NAME),
        "QSGD, 4 bits up": baselines.average_quantized(AXIS_NAME, levels=7),
        "PowerSGD, rank 4": baselines.average_low_rank(AXIS_NAME, rank=4),
        "top-k, 1 %": baselines.average_top_k(AXIS_NAME, fraction=0.01),
    }


def groups(settings: Settings, mesh: Mesh) -> Iterator[Callable[[], Group]]:
    """Whole steps, exchanges of the same network, exchanges of a tree of many leaves."""
    params = model.network(settings.parameters)
    yield lambda: whole_steps(settings, mesh, params)
    if not settings.quick:
        yield lambda: exchanges(settings, mesh, params)
    yield lambda: exchanges(settings, mesh, model.tree(settings.parameters, settings.leaves))


def require_known(only: tuple[str, ...]) -> None:
    """Raises a `UsageError` for a word that no contestant's name holds."""
    names = [*links(), _FLAT]
    for word in only:
        if ":" in word:
            _own(word)
        elif not any(word in name for name in names):
            raise unknown_name("contestant", word, names)


def whole_steps(settings: Settings, mesh: Mesh, params: dict[str, np.ndarray]) -> Group:
    """Gradient, exchange and step."""
    size = model.size_of(params)
    rows = model.batch(params, settings.batch * mesh.size)
    batch = tuple(_spread(x, mesh) for x in rows)
    calls: dict[str, Call] = {_NONE: _LocalStep(mesh, params, batch)}
    notes = {}
    for name, link in _chosen(links(), settings.only).items():
        tx = optax.chain(link, optax.scale_by_learning_rate(_LEARNING_RATE))
        calls[name] = step = _TrainStep(tx, mesh, params, batch)
        notes[name] = _notes(step.compiled, size)
    return Group(
        f"whole step, {_title(size, len(params), mesh)}", size, calls, _NONE, _FLOAT32, notes
    )


def exchanges(settings: Settings, mesh: Mesh, tree: dict[str, np.ndarray]) -> Group:
    """From every worker's own gradient to the update that all of them share."""
    size = model.size_of(tree)
    every = {_FLOAT32: links()[_FLOAT32], _FLAT: _stateless(_flat_mean), **links()}
    calls, notes = {}, {}
    gradients = jax.tree.map(lambda x: _spread(_on_every_worker(x, mesh), mesh), tree)
    for name, link in _chosen(every, settings.only).items():
        calls[name] = exchange = _Exchange(link, mesh, gradients)
        notes[name] = _notes(exchange.compiled, size)
    return Group(f"exchange, {_title(size, len(tree), mesh)}", size, calls, None, _FLOAT32, notes)


class _TrainStep:
    """`signax.make_train_step`, and the state that it donates."""

    def __init__(self, tx: Link, mesh: Mesh, params: Any, batch: Any):
        self._batch = batch
        self._state = signax.init_train_state(params, tx, mesh)
        step: Any = signax.make_train_step(model.loss, tx, mesh)
        self.compiled = step.lower(self._state, batch).compile()

    def __call__(self) -> Any:
        self._state, metrics = self.compiled(self._state, self._batch)
        return metrics, self._state


class _LocalStep:
    """Every worker steps by its own gradient: what a step costs without a network."""

    def __init__(self, mesh: Mesh, params: Any, batch: Any):
        def step(params, batch):
            gradient = jax.grad(model.loss)(params, batch)
            return jax.tree.map(lambda p, g: p - _LEARNING_RATE * g, params, gradient)

        everywhere, rows = PartitionSpec(), PartitionSpec(AXIS_NAME)
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(everywhere, rows), out_specs=everywhere, check_vma=False
        )
        self._step, self._batch = jax.jit(mapped, donate_argnums=0), batch
        self._params = jax.jit(lambda p: p, out_shardings=NamedSharding(mesh, everywhere))(params)

    def __call__(self) -> Any:
        self._params = self._step(self._params, self._batch)
        return self._params


class _Exchange:
    """One network link alone. What it returns, stacked again, is what it is given next.

    So gradients are donated, as in a training step: a fresh array above 32 MB costs page faults.
    """

    def __init__(self, link: Link, mesh: Mesh, gradients: Any):
        def of_each_worker(fn, **options):
            own = lambda rows: jax.tree.map(lambda x: x[0], rows)  # noqa: E731

            def on_rows(*args):
                return jax.tree.map(lambda x: x[None], fn(*map(own, args)))

            rows = PartitionSpec(AXIS_NAME)
            mapped = jax.shard_map(
                on_rows, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
            )
            return jax.jit(mapped, **options)

        def update(state, gradient):
            return link.update(gradient, state, gradient)[0]

        self._state = of_each_worker(link.init)(gradients)  # some need to know the axis
        lowered = of_each_worker(update, donate_argnums=1).lower(self._state, gradients)
        self.compiled = lowered.compile()
        self._gradients = jax.tree.map(jnp.copy, gradients)

    def __call__(self) -> Any:
        self._gradients = self.compiled(self._state, self._gradients)
        return self._gradients


def _notes(compiled: Any, size: int) -> Mapping[str, Any]:
    report = signax.WireReport(tuple(_hlo.read_collectives(compiled.as_text())), size)
    return {
        "bits_per_coordinate": report.bits_per_coordinate,
        "num_collectives": report.num_collectives,
    }


def _chosen(contestants: dict[str, Link], only: tuple[str, ...]) -> dict[str, Link]:
    """Those whose name holds a word of `only`, float32 always, and `package.module:function`."""
    known = {
        name: link
        for name, link in contestants.items()
        if not only or name == _FLOAT32 or any(word in name for word in only)
    }
    return known | {word: _own(word) for word in only if ":" in word}


def _own(name: str) -> Link:
    """The method `package.module:function`, as a contestant."""
    return _without_step(resolve(name, {})(1.0, axis_name=AXIS_NAME))


def _title(size: int, num_leaves: int, mesh: Mesh) -> str:
    where = f"{mesh.size} {mesh.devices.flat[0].platform} devices"
    if jax.process_count() > 1:
        where += f" in {jax.process_count()} processes"
    return f"{size:,} parameters, {num_leaves} leaves, {where}"


def _spread(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    sharding = NamedSharding(mesh, PartitionSpec(AXIS_NAME))
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def _on_every_worker(leaf: np.ndarray, mesh: Mesh) -> np.ndarray:
    return np.broadcast_to(leaf, (mesh.size, *leaf.shape))


def _stateless(reduce: Callable[[Any], Any]) -> Link:
    return optax.stateless(lambda updates, params: reduce(updates))


def _without_step(tx: Link) -> Link:
    """A named algorithm with learning rate 1 is its links and a change of sign."""
    return optax.chain(tx, optax.scale(-1.0))


def _bfloat16_mean(updates: Any) -> Any:
    half = jax.tree.map(lambda u: u.astype(jnp.bfloat16), updates)
    return jax.tree.map(lambda u: u.astype(jnp.float32), jax.lax.pmean(half, AXIS_NAME))


def _int8_majority(updates: Any) -> Any:
    """Wraps past 127 workers; a vote all the same for the clock."""
    signs = jax.tree.map(lambda u: jnp.sign(u).astype(jnp.int8), updates)
    return jax.tree.map(
        lambda total: jnp.sign(total).astype(jnp.float32), jax.lax.psum(signs, AXIS_NAME)
    )


def _flat_mean(updates: Any) -> Any:
    flat, unravel = ravel_pytree(updates)
    return unravel(jax.lax.pmean(flat, AXIS_NAME))
