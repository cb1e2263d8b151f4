"""Train on digits, and see the noise scale grow."""

from noisescale import ProblemConfig, TrainConfig, build_problem, measure_noise, train

problem = build_problem(ProblemConfig(dataset="digits", width=64))
config = TrainConfig(batch_size=32, learning_rate=0.1, epochs=10)
looks = (0, 10, 40, 160)
for checkpoint in train(problem, config, checkpoint_steps=looks):  # and one an epoch
    if checkpoint.step not in looks:
        continue
    simple = measure_noise(problem, checkpoint.params).simple
    print(f"step {checkpoint.step:>3}: B_simple = {simple.value:.0f} examples")
