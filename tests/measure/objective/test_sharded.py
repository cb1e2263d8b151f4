"""Models whose parameters lie in parts with several processes are refused, and told what to do."""

import pytest
import torch
from torch import distributed as dist, nn

from noisescale import NoiseScaleMonitor, measure_noise
from noisescale.errors import SettingError
from tests.helpers.problems import classification

fsdp = pytest.importorskip("torch.distributed.fsdp")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="torch without fully_shard")
def test_a_sharded_model_is_told_to_gather_its_weights(tmp_path):
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1
    )
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        problem = classification(nn.Sequential(nn.Linear(6, 3)).to(torch.float64))
        fsdp.fully_shard(problem.model, mesh=mesh)
        with pytest.raises(SettingError, match=r"sharded \(FSDP, fully_shard or DTensor\)"):
            measure_noise(problem)
        with pytest.raises(SettingError, match="sharded over one process"):
            NoiseScaleMonitor(problem.model).attach(problem.model)
        monitor = NoiseScaleMonitor(problem.model)  # of one process, whose shards are all there is
        for part in (problem.train.part(slice(20)), problem.train.part(slice(20, 40))):
            problem.loss(problem.model(part.inputs), part.targets).mean().div(2).backward()
            monitor.micro_batch(part.num_examples)
        assert monitor.update()
    finally:
        dist.destroy_process_group()
