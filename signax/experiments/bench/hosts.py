"""(d) A model that is cut inside each host: memory of the step, and what goes across hosts.

Compiled, not timed: devices that share one processor say nothing about a link. Kernels are cut by
rows, biases are copied, every device computes on examples of its own; only the optimizer differs.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import signax
from signax.experiments import workers
from signax.experiments.bench import model, report
from signax.experiments.errors import UsageError
from signax.wire import _hlo

_HOSTS, _DEVICES = "hosts", "devices"
_DENSE = "dense_sgd"


def optimizers() -> dict[str, optax.GradientTransformation]:
    """The dense step, and those that vote."""
    return {
        _DENSE: signax.dense_sgd(0.1, axis_name=_HOSTS),
        "dense_sgd(momentum=0.9)": signax.dense_sgd(0.1, 0.9, axis_name=_HOSTS),
        'sign_sgd(ties="random")': signax.sign_sgd(0.1, axis_name=_HOSTS, ties="random"),
        'sign_sgd(ties="zero")': signax.sign_sgd(0.1, axis_name=_HOSTS, ties="zero"),
        'signum(ties="random")': signax.signum(0.1, axis_name=_HOSTS, ties="random"),
        "ssdm": signax.ssdm(0.1, axis_name=_HOSTS),
        "double_squeeze": signax.double_squeeze(0.1, axis_name=_HOSTS),
    }


def rows(num_hosts: int, num_devices: int, num_parameters: int, batch: int) -> Iterator[dict]:
    """One row for each optimizer."""
    workers.make_cpu_devices(num_hosts * num_devices)
    if num_hosts * num_devices > len(jax.devices()):
        raise UsageError(
            f"--mesh={num_hosts}x{num_devices} needs {num_hosts * num_devices} devices, and JAX"
            f" has {len(jax.devices())}: choose a smaller one."
        )
    mesh = signax.make_worker_mesh(num_hosts, _HOSTS, inside={_DEVICES: num_devices})
    params = _divisible(model.network(num_parameters), num_devices)
    for name, tx in optimizers().items():
        yield {"optimizer": name} | _row(tx, mesh, params, batch)


def table(rows: Sequence[dict[str, Any]], mesh: tuple[int, int]) -> str:
    """What was compiled, beside the dense step."""
    dense = next(row for row in rows if row["optimizer"] == _DENSE)
    lines = [["optimizer", "memory, MB", "of it temporary", "across hosts", "bits / coordinate"]]
    lines[0].append("dense / this")
    for row in rows:
        bits = row["bits_per_coordinate"]
        lines.append(
            [
                row["optimizer"],
                f"{row['memory_bytes'] / 1e6:.2f}",
                f"{row['temporary_bytes'] / 1e6:.2f}",
                row["across"],
                f"{bits:.3f}",
                f"{dense['bits_per_coordinate'] / bits:.1f}" if bits else "",
            ]
        )
    title = (
        f"{mesh[0]} hosts x {mesh[1]} devices, {dense['num_parameters']:,} parameters:"
        " memory of one device, and what a host sends to the others"
    )
    return f"\n{title}\n{report.aligned(lines)}"


def _row(tx: Any, mesh: Mesh, params: dict[str, np.ndarray], batch: int) -> dict[str, Any]:
    axes = (_HOSTS,)
    specs = {k: PartitionSpec(_DEVICES) if x.ndim > 1 else None for k, x in params.items()}
    step = signax.make_train_step(model.loss, tx, mesh, axis_names=axes, param_specs=specs)
    state = signax.init_train_state(params, tx, mesh, axis_names=axes, param_specs=specs)
    examples = NamedSharding(mesh, PartitionSpec((_HOSTS, _DEVICES)))
    data = jax.device_put(model.batch(params, batch * mesh.size), examples)
    compiled = step.lower(state, data).compile()  # pyright: ignore[reportFunctionMemberAccess]
    memory = compiled.memory_analysis()
    num_parameters = model.size_of(params)
    across = _across_hosts(compiled.as_text(), mesh)
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "num_parameters": num_parameters,
        "memory_bytes": kept + memory.temp_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives_across_hosts": [f"{c.kind} {c.dtype}[{c.elements}]" for c in across],
        "across": ", ".join(_counted([c.kind for c in across])),
        "bits_per_coordinate": sum(c.bits for c in across) / num_parameters,
    }


def _across_hosts(text: str, mesh: Mesh) -> list[_hlo.Collective]:
    """What a host sends to others, but for numbers of the whole step.

    The mean loss, the number of voters and shared scales are a few bytes, whatever the model.
    """
    sent = signax.WireReport(tuple(_hlo.read_collectives(text))).across(_HOSTS, mesh)
    return [c for c in sent.collectives if c.elements > 8]


def _counted(kinds: Sequence[str]) -> list[str]:
    return [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]


def _divisible(params: dict[str, np.ndarray], num_devices: int) -> dict[str, np.ndarray]:
    """The network with a width that the devices can share: the next smaller one."""
    width = params["bias0"].size
    width = max(num_devices, math.floor(width / num_devices) * num_devices)
    return {name: np.resize(x, (width,) * x.ndim) for name, x in params.items()}
