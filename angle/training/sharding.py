"""Sharded weights (FSDP2): each process holds a shard, and a layer is gathered while it runs.

The launcher requests this (conf/accelerate/fsdp2_lora.yaml). Adapters on frozen weights can be trained this way;
anything else is refused here, before anything is loaded.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from angle.config import TrainConfig
from angle.errors import ConfigError
from angle.modeling.buffers import persistent_buffers
from angle.modeling.encoder import Encoder
from angle.modeling.trainable import TrainableEncoder
from angle.modeling.unreached import has_unreached_weights

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import FullyShardedDataParallelPlugin

Tree = TypeVar("Tree")

LAUNCH_FILE = "conf/accelerate/fsdp2_lora.yaml"
#: The environment that the launch file has to set. Another FSDP version represents weights differently, activation
#: checkpointing renames them, and what only one process loads cannot be checked by the others.
REQUIRED_ENV = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


def sharding_requested() -> bool:
    """Return whether the launcher requests sharded weights.

    Raises:
        ConfigError: its variable says neither yes nor no.

    """
    value = os.environ.get("ACCELERATE_USE_FSDP", "").lower()
    if value in ("", "0", "f", "n", "no", "off", "false"):  # as accelerate reads it
        return False
    if value not in ("1", "t", "y", "yes", "on", "true"):
        raise ConfigError(
            f"ACCELERATE_USE_FSDP={value} cannot work: unset it, or start with accelerate launch --config_file "
            f"{LAUNCH_FILE} train.py ..."
        )
    return True


def check_shardable(config: TrainConfig) -> None:
    """Check that the settings can be trained with sharded weights, if the launcher requests these.

    Raises:
        ConfigError: they cannot.

    """
    if not sharding_requested():
        return
    model, train = config.model, config.train
    unsupported = {
        f"model.load_kbit={model.load_kbit}": (model.load_kbit is not None, "type model.dtype=bfloat16 instead"),
        "lora=none": (not config.lora.enabled and model.adapter is None, "add lora=r16"),
        "ese.enabled=true": (config.ese.enabled, "type ese=none"),
        "teacher.enabled=true": (config.teacher.enabled, "type teacher=none"),
        "train.mixed_precision=fp16": (train.mixed_precision == "fp16", "type train.mixed_precision=bf16"),
        "train.token_budget=auto": (train.token_budget == "auto", "type a number of tokens"),
        "train.compile=true": (train.compile, "leave it out"),
        "train.dry_run=true": (train.dry_run, "leave it out"),
    }
    for setting, (is_requested, instead) in unsupported.items():
        if is_requested:
            raise ConfigError(
                f"{setting} cannot work with sharded weights (FSDP): {instead}, or start with "
                f"conf/accelerate/several_gpus.yaml, where each process holds all weights."
            )


def sharding_plugin() -> FullyShardedDataParallelPlugin | None:
    """Return how to shard the weights, or None if the launcher does not request it.

    Raises:
        ConfigError: it requests a kind of sharding other than ours.

    """
    if not sharding_requested():
        return None
    for name, required in REQUIRED_ENV.items():
        if (env_value := os.environ.get(name)) != required:
            raise ConfigError(
                f"The launcher sets {name.lower()}={env_value}, but sharded weights need {required}: start with "
                f"accelerate launch --config_file {LAUNCH_FILE} train.py ..."
            )
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    # Weights keep their dtypes, and gradients are exchanged in them: the forward pass runs under autocast, as without
    # FSDP. By accelerate's default, mixed precision would make embeddings and gradients as coarse as the layers.
    return FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy())


def enable_fsdp_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Make accelerate shard weights on a CPU too, where by default it would train a copy in every process."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def prepare(
    trainable: TrainableEncoder, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[Any, AcceleratedOptimizer]:
    """Return the model as the processes train it, with sharded weights if requested, and the optimiser."""
    if accelerator.is_fsdp2 and accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap is None:
        no_split = getattr(trainable.encoder.backbone, "_no_split_modules", None) or ()
        layers = {type(module).__name__ for module in trainable.modules()}.intersection(no_split)
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(layers)
    if accelerator.num_processes > 1 and not accelerator.is_fsdp2:
        # DDP would wait for their gradients.
        accelerator.ddp_handler.find_unused_parameters = has_unreached_weights(trainable.encoder.backbone)
    model, optimizer = accelerator.prepare(trainable, optimizer)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        # Buffers that are not saved (positions, frequencies) are never written to; others may be statistics, of which
        # the main process's are the model's. The argument is deprecated, and its successor is new.
        model.broadcast_buffers = bool(persistent_buffers(trainable))
    if accelerator.is_fsdp2:
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(model, "encode_tokens")  # so that weights are gathered for it too
        model.forward = accelerator.autocast()(model.forward)  # as accelerate does for everything but FSDP2
    return model, optimizer


def sync_buffers(trainable: TrainableEncoder, accelerator: Accelerator) -> None:
    """Give every process the main process's buffers: statistics of forward passes, of which those are the model's."""
    if accelerator.num_processes > 1:
        for buffer in persistent_buffers(trainable).values():
            torch.distributed.broadcast(buffer, 0)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor, without gradient. A sharded one is gathered, so every process must call this."""
    detached: Any = tensor.detach()
    full: Tensor = detached.full_tensor() if hasattr(detached, "full_tensor") else detached
    return full


def local_tensor(tensor: Any) -> Tensor:
    """Return what this process has of a tensor: its shard, in the same memory, or all of one that is not sharded."""
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard


def gather_full(tree: Tree, accelerator: Accelerator) -> Tree:
    """Return the tensors of dicts and lists in full, on the CPU of the main process; every process must call this.

    The other processes get empty tensors.
    """

    def to_main_process(tensor: Tensor) -> Tensor:
        tensor = full_tensor(tensor)
        return tensor.cpu().contiguous() if accelerator.is_main_process else tensor.new_empty(0)

    full: Tree = tree_map_only(Tensor, to_main_process, tree)
    return full


def shard_like(tensor: Tensor, other: Any) -> Tensor:
    """Shard a full tensor, which every process has, like `other`; return it as it is if `other` is not sharded."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def full_adapter_weights(encoder: Encoder, accelerator: Accelerator) -> dict[str, Tensor] | None:
    """Return the full adapters for `Encoder.save` if the weights are sharded, otherwise None."""
    if not accelerator.is_fsdp2:
        return None
    weights = encoder.backbone.state_dict()
    return gather_full({name: weight for name, weight in weights.items() if "lora_" in name}, accelerator)
