"""The weighted sum of adapters, against the sum of the updates that each makes to a layer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from angle import ConfigError
from angle.modeling.adapters import find_adapters, merge_adapters
from angle.modeling.tiny import tiny_model
from angle.soups.adapters import NO_SUM, check_summable, read_factor_infos, write_sum

LAYERS = ["query", "dense"]


def adapter(folder: Path, seed: int, **settings: Any) -> Path:
    """Write an adapter on the built-in model with random weights, also those that begin with zeros."""
    config = LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=LAYERS, **settings)
    model = get_peft_model(tiny_model(), config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=random) * 0.1)
    model.save_pretrained(folder)
    return folder


def merged(folder: Path) -> dict[str, torch.Tensor]:
    backbone = tiny_model()
    backbone.name_or_path = "tiny"
    return dict(merge_adapters(backbone, find_adapters(str(folder), "model.adapter")).state_dict())


def test_merged_into_the_weights_it_is_the_mean_of_what_each_is_merged(tmp_path: Path) -> None:
    """Ranks, scalings and weights all differ; the mean of each factor by itself would be far from this."""
    settings: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 8}, {"r": 2, "lora_alpha": 6}, {"r": 4, "lora_alpha": 4, "use_rslora": True},
    ]  # fmt: skip
    folders = [adapter(tmp_path / str(seed), seed, **each) for seed, each in enumerate(settings)]
    (tmp_path / "sum").mkdir()
    write_sum(folders, [0.5, 0.3, 0.2], tmp_path / "sum")
    config = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 10
    base, found, parts = tiny_model().state_dict(), merged(tmp_path / "sum"), [merged(folder) for folder in folders]
    changed = 0
    for name, weight in base.items():
        mean = sum(share * part[name].double() for share, part in zip((0.5, 0.3, 0.2), parts, strict=True))
        torch.testing.assert_close(found[name].double(), mean, rtol=0, atol=1e-6)
        changed += not mean.float().allclose(weight)
    assert changed > 8


def test_shares_below_one_leave_the_rest_to_the_base(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "one", 1, r=4, lora_alpha=8)
    (tmp_path / "sum").mkdir()
    write_sum([folder], [0.75], tmp_path / "sum")
    found, part = merged(tmp_path / "sum"), merged(folder)
    for name, weight in tiny_model().state_dict().items():
        mixed = 0.25 * weight.double() + 0.75 * part[name].double()
        torch.testing.assert_close(found[name].double(), mixed, rtol=0, atol=1e-6)


def test_the_factors_are_put_side_by_side(tmp_path: Path) -> None:
    folders = [adapter(tmp_path / str(seed), seed, r=3, lora_alpha=6) for seed in range(2)]
    (tmp_path / "sum").mkdir()
    write_sum(folders, [0.5, 0.5], tmp_path / "sum")
    for name, summed in load_file(tmp_path / "sum" / "adapter_model.safetensors").items():
        parts = [load_file(folder / "adapter_model.safetensors")[name] for folder in folders]
        expected = torch.cat(parts) if "lora_A" in name else torch.cat(parts, dim=1)  # 0.5 * 6 / 3 = 1
        assert summed.equal(expected)


def test_adapters_may_differ_in_their_rank_alone(tmp_path: Path) -> None:
    infos = [read_factor_infos(adapter(tmp_path / str(rank), 0, r=rank)) for rank in (2, 8)]
    assert infos[0] == infos[1]
    assert infos[0] != read_factor_infos(adapter(tmp_path / "more", 0, r=2, layers_to_transform=[0]))


def test_what_is_beside_the_products_must_be_equal(tmp_path: Path) -> None:
    folders = [adapter(tmp_path / name, 0, r=2) for name in "ab"]
    for number, folder in enumerate(folders):
        file = folder / "adapter_model.safetensors"
        save_file(load_file(file) | {"head.weight": torch.tensor([1.0, 2.0 + number])}, file)
    (tmp_path / "sum").mkdir()
    write_sum([folders[0]] * 2, [0.5, 0.5], tmp_path / "sum")
    assert load_file(tmp_path / "sum" / "adapter_model.safetensors")["head.weight"].tolist() == [1, 2]
    with pytest.raises(ConfigError, match=r"/a and .*/b differ in head\.weight, which has no mean: 2\.0 and 3\.0 at"):
        write_sum(folders, [0.5, 0.5], tmp_path / "sum")


@pytest.mark.parametrize(
    ("entry", "value"),
    [*((entry, {"a": 1}) for entry in NO_SUM), ("bias", "all"), ("peft_type", "IA3")],
)
def test_what_is_no_sum_is_refused(tmp_path: Path, entry: str, value: Any) -> None:
    folder = adapter(tmp_path / "one", 0, r=2)
    check_summable(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {entry: value}))
    with pytest.raises(ConfigError, match=f"one is an adapter with {entry}="):
        check_summable(folder)


def test_a_rank_stabilised_scaling_is_by_the_root_of_the_rank(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "one", 0, r=4, lora_alpha=6, use_rslora=True)
    (tmp_path / "sum").mkdir()
    write_sum([folder], [1.0], tmp_path / "sum")
    own = load_file(folder / "adapter_model.safetensors")
    for name, summed in load_file(tmp_path / "sum" / "adapter_model.safetensors").items():
        torch.testing.assert_close(summed, own[name] * (6 / math.sqrt(4) if "lora_B" in name else 1))
