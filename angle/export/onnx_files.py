"""ONNX files of a folder, under the names by which the ONNX backend of sentence-transformers finds them.

The graph is made from the folder by plain transformers, and not from the encoder: hooks and kernels stay outside, and
what the folder does not hold cannot be in it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from angle.errors import ConfigError, first_line
from angle.modeling.probing import call_options, probe_ids
from angle.quiet import quiet_loggers, quiet_transformers

ONNX_FOLDER = "onnx"
#: Name of the file by its precision: what optimum takes by default, and sentence-transformers' name of a quantised one.
ONNX_NAMES = {"float32": "model.onnx", "int8": "model_qint8_quantized.onnx"}
#: Where optimum reads the weights of a file that would be too large for its format, behind the file's name.
WEIGHTS_SUFFIX, LARGEST_FILE = "_data", 1_900_000_000
PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
#: What tells the steps of an export, and where it fails also the graph so far.
LOGGERS = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir", "root")


def onnx_paths(precision: str | None) -> tuple[str, ...]:
    """Return the files that a setting of `onnx` asks for, the one of a lower precision last."""
    names = {None: (), "float32": ("float32",), "int8": ("float32", "int8")}[precision]
    return tuple(f"{ONNX_FOLDER}/{ONNX_NAMES[name]}" for name in names)


def check_packages(precision: str) -> None:
    """Raise ConfigError if a package that makes or runs ONNX files is missing."""
    for package in PACKAGES:
        if find_spec(package) is None:
            name = package.replace("_", "-")
            raise ConfigError(f"onnx={precision} needs the package {name}: type pip install -e '.[onnx]'.")


def write_onnx_files(
    folder: Path, precision: str, *, uses_token_types: bool, trust_remote_code: bool
) -> dict[str, int]:
    """Write the ONNX files of the model in a folder, and return their bytes by their paths in it.

    Args:
        folder: what was written for sentence-transformers.
        precision: float32; int8 for a file with quantised weights beside that.
        uses_token_types: whether the model is given the types of tokens.
        trust_remote_code: whether the folder's own code may run.

    Raises:
        ConfigError: the model cannot be exported or quantised.

    """
    (folder / ONNX_FOLDER).mkdir()
    plain, *quantized = (folder / path for path in onnx_paths(precision))
    problem = f"onnx={precision} cannot work with this model, which torch cannot write as an ONNX file"
    with _refused(problem, "leave onnx out"):
        model = _export(folder, uses_token_types=uses_token_types, trust_remote_code=trust_remote_code)
    _save(model, plain)
    for path in quantized:
        with _refused("onnx=int8 cannot work with this model, which onnxruntime cannot quantise", "type onnx=float32"):
            _quantize(plain, path)
    files = {path: (folder / path).parent.glob(f"{Path(path).name}*") for path in onnx_paths(precision)}
    return {path: sum(part.stat().st_size for part in parts) for path, parts in files.items()}


@contextmanager
def _refused(problem: str, advice: str) -> Iterator[None]:
    """Turn what the exporter or the quantiser raises, which may be of any type, into a ConfigError."""
    try:
        yield
    except OSError:  # a full disk is no property of the model
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter's own message is about its steps
            cause = cause.__cause__
        reason = re.sub(r"\x1b\[\d+m", "", first_line(cause))[:200]
        raise ConfigError(f"{problem} ({reason}), so nothing is kept: {advice}.") from error


class _Backbone(nn.Module):
    """A model that takes its inputs in a fixed order, and returns the states alone."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.options = call_options(model)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the last hidden states (N, L, D)."""
        states: Tensor = self.model(**dict(zip(self.names, inputs, strict=True)), **self.options).last_hidden_state
        return states


@quiet_transformers()
def _export(folder: Path, *, uses_token_types: bool, trust_remote_code: bool) -> Any:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust_remote_code)
    ids = probe_ids(model, 3 * 17).view(3, 17)
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0  # or the exporter may leave the mask out
    inputs = {"input_ids": ids, "attention_mask": mask}
    if uses_token_types:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    names, dynamic = list(inputs), torch.export.Dim.DYNAMIC
    with warnings.catch_warnings(), quiet_loggers(*LOGGERS), redirect_stderr(StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Backbone(model, names).eval(),
            tuple(inputs.values()),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_shapes=(tuple({0: dynamic, 1: dynamic} for _ in names),),  # of the one argument *inputs
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # which tell where this machine keeps its packages
    return program.model


def _quantize(plain: Path, path: Path) -> None:
    """Write a file whose matrices are int8, one scale a column; its activations are rounded as they come."""
    import onnx_ir
    from onnxruntime.quantization import QuantType, quantize_dynamic

    is_large = plain.with_name(plain.name + WEIGHTS_SUFFIX).exists()
    with quiet_loggers(*LOGGERS):
        quantize_dynamic(plain, path, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=is_large)
    if is_large:
        _save(onnx_ir.load(path), path)
        path.with_name(f"{path.name}.data").unlink()  # what the quantiser calls it


def _save(model: Any, path: Path) -> None:
    """Write a model, with its weights beside it if they are too large for one file."""
    import onnx_ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    onnx_ir.save(model, path, external_data=path.name + WEIGHTS_SUFFIX if size > LARGEST_FILE else None)
