"""The noise scale of DistributedDataParallel and of FSDP2, by two processes on this machine."""

import torch
from torch import distributed as dist, multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from noisescale import NoiseScaleMonitor


def train(rank: int, file: str, sharded: bool) -> None:
    """One of two processes; the gradient of each is a small batch, the mean is the big one."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1))
    model = fully_shard(model) if sharded else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    monitor = NoiseScaleMonitor(model.parameters())
    monitor.attach(model)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(50):
        inputs = torch.randn(32, 20, generator=generator)
        targets = inputs.sum(1, keepdim=True) + torch.randn(32, 1, generator=generator)
        nn.functional.mse_loss(model(inputs), targets).backward()
        monitor.micro_batch(len(inputs))
        monitor.update()
        optimizer.step()
        optimizer.zero_grad()
    if rank == 0:
        print("FSDP2" if sharded else "DDP", monitor.noise(), sep="\n", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    for sharded in (False, True):
        with TemporaryDirectory() as folder:
            multiprocessing.spawn(train, (f"{folder}/meet", sharded), nprocs=2)
