"""How many examples go into one pass, by the memory that they take."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from noisescale.errors import MeasurementError
from noisescale.measure.objective.checks import graph_bytes
from noisescale.problems.problem import Examples, Source

# What one chunk's graph may take on a CPU: 128 MiB, modest beside what is kept between products
CHUNK_BYTES = 2**27
# On a GPU the share of the free memory: an eighth, which leaves room for the graphs that are kept
# between products and for what the allocator does not give back
CHUNK_GPU_SHARE = 8
LARGEST_CHUNK, LARGEST_CHUNK_ON_GPU = 2048, 65_536  # examples; a larger chunk is no faster


def largest_chunk(bytes_per_example: int, device: torch.device) -> int:
    """How many examples go into one pass that takes so much of each; at least one.

    Args:
        bytes_per_example: what autograd keeps.
        device: that the pass runs on.
    """
    budget, largest = CHUNK_BYTES, LARGEST_CHUNK
    if device.type == "cuda":
        largest = LARGEST_CHUNK_ON_GPU
        budget = free_bytes(device) // CHUNK_GPU_SHARE
    return min(max(budget // bytes_per_example, 1), largest)


def free_bytes(device: torch.device) -> int:
    """What tensors may still take of a GPU: what is free, and what torch holds for none of them.

    Args:
        device: the GPU.
    """
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def saved_bytes(work: Callable[[], list[Tensor]], shared: set[int]) -> int:
    """What autograd keeps in a pass.

    Args:
        work: the pass, which gives the roots of its graph.
        shared: addresses of storages that do not count, as those of the parameters.

    Raises:
        MeasurementError: what `work` raises.
    """
    saved: dict[int, int] = {}  # bytes by address
    # An operation that saves its own output through a hook holds itself, and nothing frees the
    # two: what is saved lies in boxes, which are emptied
    boxes: list[list[Tensor]] = []

    def note(tensor: Tensor) -> list[Tensor]:
        if tensor.layout == torch.strided:  # a sparse gradient has no storage
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in shared:
                saved[tensor.data_ptr()] = min(tensor.nbytes, storage.nbytes())
        boxes.append([tensor])
        return boxes[-1]

    try:
        with saved_tensors_hooks(note, lambda box: box[0]):
            # kept until what is saved has been counted: what is freed gives its address away
            roots = work()
        return sum(saved.values())
    except MeasurementError as error:  # torch.func inside the model takes no such hooks
        if "saved tensor hooks" not in str(error):
            raise
        roots = work()
        return graph_bytes(roots)
    finally:
        for box in boxes:
            box.clear()


def first_broken(
    examples: Source, is_broken: Callable[[Examples], bool], *, chunk_size: int
) -> int:
    """The index of the first example for which a sum over examples is not finite.

    Args:
        examples: of one of which it is not.
        is_broken: whether the sum over a part of the examples is not finite.
        chunk_size: examples in one pass.
    """
    first, size = 0, examples.num_examples
    while size > 1:
        half = min(-(-size // 2), chunk_size)
        if is_broken(examples.part(slice(first, first + half))):
            size = half
        else:
            first, size = first + half, size - half
    return first
