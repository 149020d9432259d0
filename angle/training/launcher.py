"""What accelerate's launcher was told that has a home in our settings: the same there, or refused, never ignored."""

from __future__ import annotations

from angle.config import TrainingConfig
from angle.distributed.environment import launcher_flags
from angle.errors import ConfigError

#: What to do instead of each flag that asks for a way of training that is not accelerate's here.
INSTEAD = {
    "use_deepspeed": "to shard weights, start with --config_file conf/accelerate/fsdp2_lora.yaml",
    "use_megatron_lm": "to shard weights, start with --config_file conf/accelerate/fsdp2_lora.yaml",
    "use_parallelism_config": "start with --config_file conf/accelerate/several_gpus.yaml",
    "dynamo_backend": "type train.compile=true",
}


def check_launcher(train: TrainingConfig) -> None:
    """Raise ConfigError if the launcher was told something that the settings contradict or nothing here does."""
    settings = {
        "mixed_precision": train.mixed_precision,
        "gradient_accumulation_steps": str(train.gradient_accumulation_steps),
    }
    for flag, value in launcher_flags().items():
        if flag in INSTEAD:
            words = f"{flag} {value}" if value != "true" else flag
            raise ConfigError(f"accelerate launch --{words} is not supported: leave the flag out, and {INSTEAD[flag]}.")
        setting = f"train.{flag}"
        if value != settings[flag]:
            supported = "bf16" if value == "fp8" else value
            raise ConfigError(
                f"accelerate launch --{flag} {value} contradicts {setting}={settings[flag]}: type "
                f"{setting}={supported}, or leave out the flag (a line in the file that accelerate config wrote is "
                f"one too)."
            )
