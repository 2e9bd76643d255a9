"""PyTorch's DistributedDataParallel beside signax: seconds per step at a bandwidth.

The transformer of `configs/bytes.py` (four layers, width 320, 5,111,936 parameters) and its batch,
4 windows of 64 bytes for each process, with AdamW and gloo on the CPU, in the network namespaces of
`signax bench`: with no hook, with the fp16 hook, and with the PowerSGD hook of rank 4. Only steps
are timed, on random bytes, which cost what text costs; nothing is learnt. DDP overlaps its exchange
with the backward pass; signax does not.

It is no part of the test-suite: PyTorch is no dependency of signax. Give it a Python that has torch
(tried with torch 2.13.0+cpu), which needs nothing else:

  python -m venv torch-env && torch-env/bin/pip install torch numpy   # the CPU build is enough
  python scripts/torch_ddp.py --torch=torch-env/bin/python --bandwidths=loopback,100mbit

With --ours=runs/to_accuracy/to_accuracy.json it adds how many of signax's steps go into one of
theirs. A bandwidth needs Linux and root.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

WARM_UP = 4  # steps: connections, DDP's rebuilt buckets, and PowerSGD's first dense steps
HOOKS = ("none", "fp16", "powersgd")
LAYERS, WIDTH, HEADS, LENGTH = 4, 320, 4, 64


def main() -> None:
    flags = _parser().parse_args()
    if flags.hook:
        _child(flags)
        return
    measured = {
        (network, hook): _measure(flags, network, hook)
        for network in flags.bandwidths.split(",")
        for hook in HOOKS
    }
    ours = json.loads(flags.ours.read_text())["rows"] if flags.ours else []
    print("\n".join(_table(measured, ours)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", type=Path, help="a Python that has torch")
    parser.add_argument("--bandwidths", default="loopback", help="loopback,1gbit,100mbit")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4, help="windows of each process")
    parser.add_argument("--steps", type=int, default=12, help="to time")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--workdir", type=Path, default=Path("runs/torch_ddp"))
    parser.add_argument("--ours", type=Path, help="to_accuracy.json of signax bench")
    parser.add_argument("--hook", choices=HOOKS, help=argparse.SUPPRESS)  # of a child
    return parser


# The parent, with signax


def _measure(flags: argparse.Namespace, network: str, hook: str) -> list[float]:
    """The median, 10 % and 90 % of the seconds of a step; the children write them to a file."""
    from signax.experiments.bench import local
    from signax.experiments.bench.settings import parse_bandwidth

    if flags.torch is None:
        raise SystemExit("say which Python has torch: --torch=PATH.")
    folder = (flags.workdir / network / hook).absolute()
    command = [str(flags.torch), str(Path(__file__).absolute()), f"--hook={hook}"]
    command += [f"--{name}={getattr(flags, name)}" for name in ("batch", "steps", "threads")]
    bandwidth = None if network == "loopback" else parse_bandwidth(network)
    status = local.run([*command, f"--workdir={folder}"], flags.processes, bandwidth, folder)
    if status:
        raise SystemExit(status)
    seconds = json.loads((folder / "seconds.json").read_text())
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return [statistics.median(seconds), tenths[0], tenths[-1]]


def _table(measured: dict, ours: list[dict]) -> list[str]:
    lines = []
    for (network, hook), (median, low, high) in measured.items():
        beside = [
            f"{row['run']} {median / row['step_seconds'][0]:.2f}"
            for row in ours
            if row["network"] == network
        ]
        ratios = f"   over ours: {', '.join(beside)}" if beside else ""
        lines.append(f"{network:<9} {hook:<9} {median:.3f} s [{low:.3f}-{high:.3f}]{ratios}")
    return lines


# A child, with torch


def _child(flags: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist

    rank, size = int(os.environ["JAX_PROCESS_ID"]), int(os.environ["JAX_NUM_PROCESSES"])
    torch.set_num_threads(flags.threads)
    address = f"tcp://{os.environ['JAX_COORDINATOR_ADDRESS']}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    torch.manual_seed(0)
    # PowerSGD's collectives of two buckets may cross on gloo, which ends the processes: one bucket.
    size_of_bucket = 100 if flags.hook == "powersgd" else None
    model = torch.nn.parallel.DistributedDataParallel(
        _transformer(torch), bucket_cap_mb=size_of_bucket
    )
    _register(model, flags.hook)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if rank == 0:
        num = sum(p.numel() for p in model.parameters())
        print(f"{flags.hook}: {num:,} parameters, {size} processes", file=sys.stderr, flush=True)
    seconds = []
    for _ in range(WARM_UP + flags.steps):
        text = torch.randint(0, 256, (flags.batch, LENGTH + 1))
        start = time.perf_counter()
        logits = model(text[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        (flags.workdir / "seconds.json").write_text(json.dumps(seconds[WARM_UP:]) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def _register(model, hook: str) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    if hook == "fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif hook == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=4, start_powerSGD_iter=2
        )
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def _transformer(torch):
    """That of `signax.experiments.transformer`."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.out = nn.Linear(WIDTH, WIDTH, bias=False)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x):
            heads = self.qkv(self.before_attention(x)).unflatten(-1, (3 * HEADS, -1))
            q, k, v = heads.transpose(1, 2).chunk(3, dim=1)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            return x + self.down(nn.functional.gelu(self.up(self.before_mlp(x))))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.byte, self.position = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
            self.last_norm, self.logits = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

        def forward(self, text):
            x = self.byte(text) + self.position(torch.arange(text.shape[1]))
            return self.logits(self.last_norm(self.blocks(x)))

    return Transformer()


if __name__ == "__main__":
    main()
