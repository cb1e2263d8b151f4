from typing_extensions import Buffer

def sgd(
    layers: Buffer,
    inputs: int,
    targets: int,
    losses: int,
    steps: int,
    batch_size: int,
    loss: int,
    learning_rate: float,
    weight_decay: float,
    /,
) -> int:
    """Makes steps of plain SGD on the mean loss of batches, and returns how many.

    They end after the first one whose loss is not finite. Addresses are those of contiguous memory,
    and nothing is checked.

    Args:
        layers: five numbers of 64 bits each: the addresses of the weight (rows, cols) in float32
            and of the bias (rows,), or 0; rows, cols, and the number of the activation behind it.
        inputs: address of the examples (steps·batch_size, cols of the first layer) in float32.
        targets: address of their classes (steps·batch_size,), int64, below the last layer's rows.
        losses: address that the mean losses (steps,) are written to, in float32.
        steps: 1 or more.
        batch_size: 1 or more.
        loss: its number.
        learning_rate: η.
        weight_decay: λ.
    """
