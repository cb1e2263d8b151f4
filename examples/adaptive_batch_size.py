"""A batch size that follows the noise scale, B = √(r·B_simple), and every change of it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from noisescale import AdaptiveConfig, ProblemConfig, TrainConfig, read_batch_size, run_training

with TemporaryDirectory() as folder:
    out = Path(folder) / "run"
    config = TrainConfig(
        batch_size="adaptive",
        learning_rate=0.1,
        epochs=10,
        adaptive=AdaptiveConfig(exchange_rate=100, initial_batch_size=16, noise_memory=1000),
    )
    run_training(ProblemConfig(dataset="digits", width=64), config, out)
    for row in read_batch_size(out):
        print(f"step {row['step']:>4}: B = {row['batch_size']}")
