"""Runs on several processes: how ranks share the weights, agree on their input and notice lost ranks.

Under DDP each rank holds all weights; with sharding (FSDP, arXiv:2304.11277), each holds a slice of every
tensor and gathers the slices of a block when it is computed. Checkpoints are whole in both cases, so that
another number of ranks can resume a run.
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
from typing_extensions import override

from bench.config.schema import Trainer
from bench.errors import DataError, LostRankError

# Error messages of gloo and of the store.
LOST = "closed by peer|connection (closed|reset)|broken pipe|timed out|timeout"


def strategy_of(settings: Trainer, *, has_idle_weights: bool) -> Strategy | str:
    """Return Lightning's strategy; `has_idle_weights`: some steps train only a part of the weights."""
    if settings.n_ranks == 1:
        return "auto"
    timeout = timedelta(seconds=settings.timeout_s)
    if settings.sharding == "full":
        return Sharded(timeout=timeout)
    return DDPStrategy(timeout=timeout, find_unused_parameters=has_idle_weights)


class Sharded(DDPStrategy):
    """DDP with sliced weights, gradients and optimizer state; saved states are whole."""

    def configure_ddp(self) -> None:
        """Slice the model instead of wrapping it."""
        assert self.model is not None
        shard(self.model, self.root_device.type, self.world_size)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole weights; all ranks must call this."""
        state: dict[str, Any] = whole(super().lightning_module_state_dict())
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """Return the whole state of an optimizer, as one process would save it; all ranks must call this."""
        state: dict[str, Tensor] = whole(super().optimizer_state(optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's slices of the whole state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(sliced(state, optimizer))


def shard(model: nn.Module, device: str, world: int) -> None:
    """Slice every block of every stack, and all other weights as one group, which tied weights must share.

    The `loss` and `training_step` of the objective gather the weights that they use.
    """
    mesh = init_device_mesh(device, (world,))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("loss", "training_step"):
        register_fsdp_forward_method(model, method)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return every block of every stack."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block for stack in stacks for block in stack]


def whole(state: Any) -> Any:
    """Gather all slices of a state, on the CPU; all ranks must call this."""
    return apply_to_collection(state, DTensor, lambda tensor: tensor.full_tensor().cpu())


def sliced(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Slice an optimizer's whole state like its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ids = [i for group in state["param_groups"] for i in group["params"]]
    own = {
        i: {name: _slice_as(parameter, value) for name, value in state["state"][i].items()}
        for i, parameter in zip(ids, parameters, strict=True)
        if i in state["state"]  # weights not trained so far have none
    }
    return state | {"state": own}


def _slice_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Return this rank's slice of a tensor that has the parameter's shape; other values unchanged."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


class WholeWeights(Callback):
    """Gather the weights after the last step, while all ranks still run."""

    weights: dict[str, Tensor] | None = None

    @override
    def on_train_end(self, trainer: Lightning, module: LightningModule) -> None:
        if isinstance(trainer.strategy, Sharded):
            self.weights = trainer.strategy.lightning_module_state_dict()


class Agreement(Callback):
    """Stop before the first step if ranks have different input: values by the name that the error uses."""

    def __init__(self, seen: Mapping[str, str]) -> None:
        self.seen = dict(seen)

    def setup(self, trainer: Lightning, module: LightningModule, stage: str) -> None:
        """Compare the input of all ranks; raise DataError on all of them if it differs."""
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
    """Raise LostRankError, a message of one line, if another rank is gone or has not answered in time."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if settings.n_ranks > 1 and re.search(LOST, str(error), re.IGNORECASE):
            raise LostRankError(settings.timeout_s) from error
        raise
