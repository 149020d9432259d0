"""The schema: every setting with its type, default, meaning and validation, one file a group.

These files are the single source of every default. The command line (through Hydra's files in conf/), Python and the
tests all go through `angle.config.build.build_config`, which returns these dataclasses.

`None` ("null" on the command line) always means "decide from the model or the data". The decision is printed, and
saved in the run's `config.yaml`.
"""

from angle.config.billm import START_INDEX_VARIABLE, BillmConfig
from angle.config.data import DataConfig, DataFormatConfig, RetrievalConfig
from angle.config.embedding import EmbedConfig
from angle.config.ese import EseConfig
from angle.config.hparams import HparamsConfig
from angle.config.hub import HUB_NAME, HubConfig
from angle.config.limits import LimitsConfig
from angle.config.lora import LoraConfig
from angle.config.loss import (
    ANGLE,
    COSINE,
    IN_BATCH,
    LOSS_TERM_SPECS,
    POSITIVES,
    REVERSE,
    LossConfig,
    LossTermSpec,
    enumerate_words,
)
from angle.config.mining import JudgeConfig, MineConfig
from angle.config.model import ModelConfig
from angle.config.pooling import POOLING_NAMES, PoolingConfig
from angle.config.scripts import ConvertConfig, EvaluateConfig, TrainConfig
from angle.config.source import SAMPLE, NamedSourceConfig, SourceConfig, TrainSourceConfig, label_name
from angle.config.teacher import TeacherConfig
from angle.config.tracking import TRACKING_MODES, TrackingConfig
from angle.config.training import OWN_DROPOUT, TrainingConfig
from angle.config.values import (
    CONFIG_FILE,
    DTYPES,
    FORMAT_NAMES,
    RETRIEVAL_METRIC,
    RUN_FILE,
    SELF_TEACHER,
    SWEEP_FILE,
)

__all__ = [
    "ANGLE",
    "CONFIG_FILE",
    "COSINE",
    "DTYPES",
    "FORMAT_NAMES",
    "HUB_NAME",
    "IN_BATCH",
    "LOSS_TERM_SPECS",
    "OWN_DROPOUT",
    "POOLING_NAMES",
    "POSITIVES",
    "RETRIEVAL_METRIC",
    "REVERSE",
    "RUN_FILE",
    "SAMPLE",
    "SELF_TEACHER",
    "START_INDEX_VARIABLE",
    "SWEEP_FILE",
    "TRACKING_MODES",
    "BillmConfig",
    "ConvertConfig",
    "DataConfig",
    "DataFormatConfig",
    "EmbedConfig",
    "EseConfig",
    "EvaluateConfig",
    "HparamsConfig",
    "HubConfig",
    "JudgeConfig",
    "LimitsConfig",
    "LoraConfig",
    "LossConfig",
    "LossTermSpec",
    "MineConfig",
    "ModelConfig",
    "NamedSourceConfig",
    "PoolingConfig",
    "RetrievalConfig",
    "SourceConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainSourceConfig",
    "TrainingConfig",
    "enumerate_words",
    "label_name",
]
