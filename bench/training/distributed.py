"""Several processes as one run: how they share its weights, agree on its input and miss one another.

Under DDP each rank holds all weights; sharded (FSDP, arXiv:2304.11277), each holds a slice of every tensor
and gathers a block's when it is computed. Checkpoints are whole in both cases: a run may go on with another
number of ranks.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning import Trainer as Lightning
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from bench.config.schema import Trainer
from bench.errors import DataError, LostRankError

LOST = (
    "closed by peer|connection (closed|reset)|broken pipe|timed out|timeout"  # gloo's and the store's words
)


def strategy_of(settings: Trainer, *, has_idle_weights: bool) -> Strategy | str:
    """Lightning's strategy for a run's ranks.

    Args:
        settings: how many there are, and how they share the weights.
        has_idle_weights: some steps train only a part of the weights.
    """
    if settings.n_ranks == 1:
        return "auto"
    timeout = timedelta(seconds=settings.timeout_s)
    if settings.sharding == "full":
        return Sharded(timeout=timeout)
    return DDPStrategy(timeout=timeout, find_unused_parameters=has_idle_weights)


class Sharded(DDPStrategy):
    """As DDP, with weights, gradients and optimizer state in slices; what is saved is whole."""

    def configure_ddp(self) -> None:
        """Slice the model in place of wrapping it."""
        assert self.model is not None
        shard(self.model, self.root_device.type, self.world_size)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights; all ranks call this."""
        state: dict[str, Any] = whole(super().lightning_module_state_dict())
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """The whole state of an optimizer, as one process would save it; all ranks call this."""
        state: dict[str, Tensor] = whole(super().optimizer_state(optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank takes its slices from the whole state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(dealt(state, optimizer))


def shard(model: nn.Module, device: str, world: int) -> None:
    """Slice every block of every stack, and all else together: tied weights must lie in one group.

    Args:
        model: an objective; its `loss` and `training_step` gather what they compute with.
        device: cpu or cuda.
        world: the number of ranks.
    """
    mesh = init_device_mesh(device, (world,))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("loss", "training_step"):
        register_fsdp_forward_method(model, method)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Every block of every stack."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block for stack in stacks for block in stack]


def whole(state: Any) -> Any:
    """A state with all slices gathered, on the CPU; all ranks call this."""
    return apply_to_collection(state, DTensor, lambda tensor: tensor.full_tensor().cpu())


def dealt(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's whole state, sliced as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ids = [i for group in state["param_groups"] for i in group["params"]]
    sliced = {
        i: {name: _slice_as(parameter, value) for name, value in state["state"][i].items()}
        for i, parameter in zip(ids, parameters, strict=True)
        if i in state["state"]  # idle so far: it has none
    }
    return state | {"state": sliced}


def _slice_as(parameter: Tensor, value: Tensor) -> Tensor:
    """The rank's slice of a whole tensor of the parameter's shape; else as it is, such as a step."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


class WholeWeights(Callback):
    """Gathers the weights after the last step, while the ranks are still together."""

    weights: dict[str, Tensor] | None = None

    def on_train_end(self, trainer: Lightning, module: LightningModule) -> None:
        """Of no effect where no rank holds only a slice."""
        if isinstance(trainer.strategy, Sharded):
            self.weights = trainer.strategy.lightning_module_state_dict()


class Agreement(Callback):
    """Ranks that were given different input stop before the first step.

    Args:
        seen: what must be the same, by the words that name it to a user.
    """

    def __init__(self, seen: Mapping[str, str]) -> None:
        self.seen = dict(seen)

    def setup(self, trainer: Lightning, module: LightningModule, stage: str) -> None:
        """Compare, once the ranks know each other.

        Raises:
            DataError: on all ranks alike.
        """
        if trainer.world_size == 1:
            return
        everyone: list[dict[str, str]] = [{} for _ in range(trainer.world_size)]
        dist.all_gather_object(everyone, self.seen)
        for rank, seen in enumerate(everyone):
            differ = [name for name, value in seen.items() if value != everyone[0][name]]
            if differ:
                raise DataError(
                    f"rank {rank} has another {', another '.join(differ)} than rank 0; give all nodes the "
                    "same config, and the same folders as paths.data and paths.experiments"
                )


@contextmanager
def lost_ranks_named(settings: Trainer) -> Iterator[None]:
    """Around collective work: a connection that breaks or stays silent becomes one line.

    Raises:
        LostRankError: another rank is gone, or has not answered in time.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if settings.n_ranks > 1 and re.search(LOST, str(error), re.IGNORECASE):
            raise LostRankError(settings.timeout_s) from error
        raise
