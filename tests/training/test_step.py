"""The gradient of a batch does not depend on how its texts are cut into micro-batches, nor on who runs them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import free_port
from torch import Tensor, nn
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from angle.config import TrainConfig
from angle.config.build import build_config, load_config
from angle.distributed.process_group import shutdown_distributed
from angle.errors import ConfigError, TrainingError
from angle.objective.combined import LossOutput
from angle.structures import Batch
from angle.training import memory, setup, sharding
from angle.training.distributed import check_equal_weights
from angle.training.loop import fit
from angle.training.step import Step, micro_batches

#: Whatever an objective may have beyond a format's own terms.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all terms": {"loss": {"cosine_w": 1.0, "ibn_w": 20.0, "angle_w": 1.0}},
    "espresso": {"ese": {"enabled": True, "compression_size": 32}},
    "teacher": {"teacher": {"enabled": True, "name_or_path": "self", "projection": True, "mse_w": 1.0}},
    "teacher of tokens": {"teacher": {"enabled": True, "name_or_path": "self", "pooling": "tokens"}},
    "both": {
        "ese": {"enabled": True, "compression_size": 32},
        "teacher": {"enabled": True, "name_or_path": "self", "temperature": 0.5},
    },
    "adapters": {"lora": {"enabled": True, "dropout": 0.0}, "teacher": {"enabled": True, "name_or_path": "self"}},
}


def built(data_format: str, *, rows: int = 24, dropout: float = 0.0, **groups: Any) -> tuple[setup.Built, Accelerator]:
    """Return what a run on the built-in sentences works with."""
    data = {"train": {"name_or_path": "sample"}}
    config = build_config(
        {"data": data, "data_format": {"name": data_format}, "train": {"batch_size": rows}, **groups}, TrainConfig
    )
    accelerator = setup.start_accelerator(config)
    made = setup.build(config, accelerator)
    for module in made.trainable.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    weights = made.trainable.projection
    if weights is not None:  # as far from the teacher as a trained one
        nn.init.normal_(weights.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return made, accelerator


def step_of(made: setup.Built, accelerator: Accelerator, budget: int | None = None) -> Step:
    made.trainable.train()
    return Step(made.trainable, made.objective, made.teacher, accelerator, budget)


def with_all_graphs(
    made: setup.Built, accelerator: Accelerator, batch: Batch, parts: list[slice]
) -> tuple[LossOutput, dict[str, Tensor]]:
    """Return the loss and the gradients of micro-batches whose graphs are all kept."""
    embeddings = torch.cat([made.trainable(*batch.micro_batch(part, accelerator.device))[0] for part in parts])
    loss = made.objective(embeddings, batch.structure)
    loss.total.backward()
    return loss, gradients(made.trainable)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Take the gradients off a model."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def length(gradients: Iterable[Tensor]) -> Tensor:
    """Return the length of the gradient of all weights."""
    return torch.stack([gradient.norm() for gradient in gradients]).norm()


def assert_equal_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Check that every weight's gradient is off by 1e-5 of its length at most, or by rounding errors of the whole."""
    assert found.keys() == wanted.keys()
    whole = length(wanted.values())
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * whole, name


@pytest.mark.parametrize("data_format", ["A", "B", "C"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_change_no_gradient(data_format: str, name: str) -> None:
    groups = {group: values for group, values in OBJECTIVES[name].items() if group != "loss" or data_format != "C"}
    made, accelerator = built(data_format, **groups)
    batch = next(made.data.train.steps(0))[0]
    whole = step_of(made, accelerator).forward_backward(batch, 0.5)
    wanted = gradients(made.trainable)
    for budget in (1, 40, 150):
        assert len(micro_batches(batch.max_lengths, budget)) > 2
        loss = step_of(made, accelerator, budget).forward_backward(batch, 0.5)
        assert loss.terms.keys() == whole.terms.keys()
        for value, other in [(loss.total, whole.total), *zip(loss.terms.values(), whole.terms.values(), strict=True)]:
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
        assert_equal_gradients(gradients(made.trainable), wanted)


@pytest.mark.parametrize("name", ["plain", "both"])
def test_the_plain_step_is_the_gradient_of_its_loss(name: str) -> None:
    made, accelerator = built("B", **OBJECTIVES[name])
    batch = next(made.data.train.steps(0))[0]
    step_of(made, accelerator).forward_backward(batch, 0.5)
    found = gradients(made.trainable)
    ids, lengths = batch.micro_batch(slice(None), accelerator.device)
    embeddings, states = made.trainable(ids, lengths)
    loss = made.objective(embeddings, batch.structure).total
    if made.teacher is not None:
        of_rows = made.teacher(ids, lengths, batch.text_ids)[batch.structure.index.flatten()]
        own = states[batch.structure.index.flatten()]
        temperature = made.config.teacher.temperature
        wanted, found_ = (torch.log_softmax(values / temperature, -1) for values in (of_rows, own))
        loss = loss + temperature * (wanted.exp() * (wanted - found_)).sum(-1).mean()
    (loss / 2).backward()
    assert_equal_gradients(found, gradients(made.trainable))


def built_in(precision: str, name: str) -> tuple[setup.Built, Accelerator, Batch]:
    """Return what a run of format B in a precision works with, and its first batch."""
    train = {"batch_size": 24, "mixed_precision": precision}
    made, accelerator = built("B", **OBJECTIVES[name], train=train)
    assert accelerator.prepare(made.trainable) is made.trainable  # whose forward has autocast around it from now on
    return made, accelerator, next(made.data.train.steps(0))[0]


@pytest.mark.parametrize("within", [False, True], ids=["", "within autocast"])
@pytest.mark.parametrize("name", ["plain", "espresso", "adapters"])
def test_autocast_rounds_each_micro_batch_as_with_its_graph_kept(name: str, within: bool) -> None:
    """Each is cast by itself in both, so only the order in which float32 gradients are added differs.

    Autocast remembers the weights that it cast. Were casts remembered from the pass without a graph, those weights
    would get no gradient in the pass with one: what `within` another autocast would come to light.
    """
    made, accelerator, batch = built_in("bf16", name)
    for budget, count in ((600, 2), (150, 7)):
        parts = micro_batches(batch.max_lengths, budget)
        assert len(parts) == count
        with accelerator.autocast() if within else nullcontext():
            cached = Step(made.trainable.train(), made.objective, None, accelerator, budget).forward_backward(batch)
        found = gradients(made.trainable)
        loss, wanted = with_all_graphs(made, accelerator, batch, parts)
        assert torch.equal(cached.total, loss.total)
        assert_equal_gradients(found, wanted)
        # Two numbers have the same sum in either order.
        assert count > 2 or all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


@pytest.mark.parametrize("name", ["plain", "both", "adapters"])
def test_autocast_leaves_micro_batches_as_near_to_float32_as_the_whole_batch(name: str) -> None:
    """Cut otherwise, a batch is rounded in other places, and by about as much."""
    made, accelerator, batch = built_in("no", name)
    step_of(made, accelerator).forward_backward(batch)
    exact = gradients(made.trainable)
    made, accelerator, batch = built_in("bf16", name)
    apart = {}
    for budget in (None, 600, 40):
        step_of(made, accelerator, budget).forward_backward(batch)
        found = gradients(made.trainable)
        assert found.keys() == exact.keys()
        errors = length(found[name] - gradient for name, gradient in exact.items())
        apart[budget] = errors / length(exact.values())
    assert 1e-4 < apart[None] < 1e-2  # it was cast
    assert max(apart.values()) < 2 * apart[None]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_thrown_again(checkpointing: bool) -> None:
    made, accelerator = built("A", dropout=0.3, model={"gradient_checkpointing": checkpointing})
    batch = next(made.data.train.steps(0))[0]
    step = step_of(made, accelerator, 80)
    parts = micro_batches(batch.max_lengths, 80)
    assert len(parts) > 3
    torch.manual_seed(5)
    cached = step.forward_backward(batch)
    found, dice = gradients(made.trainable), torch.get_rng_state()

    torch.manual_seed(5)
    loss, wanted = with_all_graphs(made, accelerator, batch, parts)
    torch.testing.assert_close(cached.total, loss.total.detach(), rtol=1e-6, atol=0)
    assert_equal_gradients(found, wanted)
    assert torch.equal(dice, torch.get_rng_state())  # the next batch throws other ones

    torch.manual_seed(6)
    assert step.forward_backward(batch).total != cached.total


def test_memory_is_that_of_a_micro_batch() -> None:
    made, accelerator = built("A", rows=200)
    batch = next(made.data.train.steps(0))[0]
    for parameter in made.trainable.parameters():
        parameter.grad = torch.zeros_like(parameter)
    peaks = {}
    for budget in (None, 2000, 500, 250):
        with memory.Allocations() as made_then:
            step_of(made, accelerator, budget).forward_backward(batch)
        peaks[budget] = made_then.peak
    assert len(batch.tokens.ids) > 2000
    assert peaks[500] < 0.4 * peaks[2000] < 0.8 * peaks[None]
    assert peaks[250] < 0.7 * peaks[500]


@pytest.mark.parametrize("data_format", ["A", "B"])
def test_memory_grows_by_six_times_the_embeddings_at_most(data_format: str) -> None:
    made, accelerator = built(data_format, rows=4, loss={"cosine_w": 1.0, "ibn_w": 0.0, "angle_w": 1.0})
    step = step_of(made, accelerator, 512)
    for parameter in made.trainable.parameters():
        parameter.grad = torch.zeros_like(parameter)
    peaks = []
    for rows in (4000, 8000):
        batch = memory._trial(step, made.data.train.format, rows, 3)
        with memory.Allocations() as made_then:
            step.forward_backward(batch)
        peaks.append(made_then.peak)
    embeddings, _ = made.trainable(*batch.micro_batch(slice(0, 4000), accelerator.device))
    assert peaks[1] - peaks[0] < 6 * len(made.data.train.format.roles) * embeddings.nbytes


@pytest.mark.parametrize("groups", [{}, OBJECTIVES["espresso"], OBJECTIVES["teacher of tokens"]], ids=str)
def test_the_budget_that_is_found_fills_the_memory(monkeypatch: pytest.MonkeyPatch, groups: dict[str, Any]) -> None:
    rows = 400
    made, accelerator = built("A", rows=rows, **groups)
    batch = next(made.data.train.steps(0))[0]
    trained = sum(parameter.nbytes for parameter in made.trainable.parameters() if parameter.requires_grad)
    room = 30 * 2**20
    monkeypatch.setattr(memory, "_free", lambda _: int((room + 3 * trained) / memory.PLANNED))
    longest = int(batch.max_lengths.max())
    budget = memory.find_token_budget(step_of(made, accelerator), batch.structure.format, rows, longest)
    assert budget < batch.max_lengths.sum() / 2
    for parameter in made.trainable.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with memory.Allocations() as made_then:
        step_of(made, accelerator, budget).forward_backward(batch)
    assert 0.6 * room < made_then.peak < 1.1 * room

    monkeypatch.setattr(memory, "_free", lambda _: 3 * trained)
    with pytest.raises(ConfigError, match=r"train.token_budget=auto found no room: the longest text has \d+ tokens"):
        memory.find_token_budget(step_of(made, accelerator), batch.structure.format, rows, longest)


def test_in_a_container_files_that_were_read_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit less what is used, but for files that are kept in case they are read again."""
    accelerator = setup.start_accelerator(build_config({}, TrainConfig))
    alone = memory._free(accelerator)
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    (tmp_path / "memory.current").write_text(f"{900 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"anon {300 << 20}\nactive_file 7\ninactive_file {500 << 20}\n")
    (tmp_path / "memory.max").write_text(f"{1000 << 20}\n")
    assert memory._free(accelerator) == min(alone, 600 << 20)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free(accelerator) == pytest.approx(alone, rel=0.2)


def test_a_run_keeps_the_budget_that_it_found(tmp_path: Path) -> None:
    asked = {"train": {"token_budget": "auto", "max_steps": 2, "batch_size": 4, "output_dir": str(tmp_path / "run")}}
    fit(build_config(asked, TrainConfig))
    found = load_config(tmp_path / "run" / "config.yaml").train
    assert found.tokens_at_once is not None
    assert found.tokens_at_once > 10_000
    assert fit(build_config(asked, TrainConfig)).finished_before


def _best_parts(lengths: list[int], budget: int) -> tuple[int, int]:
    """Return the fewest parts that keep a budget, and the least that the largest of so many has, of all cuts."""
    found = []
    for inner in range(1 << (len(lengths) - 1)):
        cuts = [0, *(place for place in range(1, len(lengths)) if inner >> (place - 1) & 1), len(lengths)]
        parts = [lengths[first:end] for first, end in pairwise(cuts)]
        if all(sum(part) <= budget or len(part) == 1 for part in parts):
            found.append((len(parts), max(sum(part) for part in parts)))
    return min(found)


@pytest.mark.parametrize("seed", range(40))
def test_parts_are_few_and_even(seed: int) -> None:
    random = np.random.default_rng(seed)
    max_lengths = np.sort(random.integers(1, 40, random.integers(1, 12 if seed % 2 else 60)))[::-1]
    budget = int(random.integers(1, 120))
    parts = micro_batches(max_lengths, budget)
    places = np.arange(len(max_lengths))
    np.testing.assert_array_equal(np.concatenate([places[part] for part in parts]), places)
    assert all(max_lengths[part].sum() <= budget or len(max_lengths[part]) == 1 for part in parts)
    if len(max_lengths) <= 12:
        fewest, largest = _best_parts(max_lengths.tolist(), budget)
        assert (len(parts), max(max_lengths[part].sum() for part in parts)) == (fewest, largest)
    assert micro_batches(max_lengths, None) == [slice(0, len(max_lengths))]


def _count_exchanges(rank: int, folder: str, port: int) -> None:
    """Run on each of two processes: a step of two batches, in several micro-batches each."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()} | {"ACCELERATE_USE_CPU": "true"}
    made, accelerator = built("A", rows=8, train={"batch_size": 8, "gradient_accumulation_steps": 2})
    assert accelerator.num_processes == 2
    calls: list[int] = []

    def hook(_, bucket):  # which torch wants without annotations, or with its own
        calls.append(bucket.index())
        shared = dist.all_reduce(bucket.buffer().div_(2), async_op=True)
        assert shared is not None
        return shared.get_future().then(lambda future: future.value()[0])

    optimizer = torch.optim.AdamW(made.trainable.parameters(), fused=True)
    model, _ = sharding.prepare(made.trainable, optimizer, accelerator)
    assert not model.broadcast_buffers  # no buffer is ever written to
    model.register_comm_hook(None, hook)
    step = Step(model, made.objective, None, accelerator, token_budget=60)
    batches = next(made.data.train.steps(0))
    assert len(batches) == 2
    assert all(len(micro_batches(batch.max_lengths, 60)) > 1 for batch in batches)
    for batch in batches:
        step.forward_backward(batch, 0.5, sync_gradients=batch is batches[-1])
    assert len(calls) == len(set(calls)) >= 1
    torch.save(gradients(made.trainable), f"{folder}/{rank}.pt")

    check_equal_weights(made.trainable)
    if rank:  # the same numbers in other places
        weight = next(p for p in made.trainable.parameters() if p.requires_grad).detach()
        weight[:2] = weight[:2].flip(0)
    with pytest.raises(TrainingError, match="weights differ after training"):
        check_equal_weights(made.trainable)
    del model, step, hook  # DDP's threads must not outlive the interpreter with a function of Python
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_exchange_gradients_once_a_step(tmp_path: Path) -> None:
    spawn(_count_exchanges, (str(tmp_path), free_port()), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _train_and_leave(rank: int, folder: str, port: int) -> None:
    """Train on each of two processes, and write the names of the threads that are left at the end."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()} | {"ACCELERATE_USE_CPU": "true"}
    settings = {"batch_size": 8, "max_steps": 1, "output_dir": f"{folder}/run"}
    fit(build_config({"train": settings}, TrainConfig))
    shutdown_distributed()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    Path(folder, f"{rank}.txt").write_text(" ".join(names))


@pytest.mark.slow
def test_no_thread_of_the_connection_outlives_a_run(tmp_path: Path) -> None:
    """Such a thread can abort the process while the interpreter ends, after a finished run."""
    spawn(_train_and_leave, (str(tmp_path), free_port()), nprocs=2)
    for rank in (0, 1):
        names = (tmp_path / f"{rank}.txt").read_text()
        assert names
        assert "gloo" not in names


def test_a_batch_s_weights_are_those_of_its_roles() -> None:
    made, _ = built("B")
    batch: Batch = next(made.data.train.steps(0))[0]
    counts = np.bincount(batch.structure.index.flatten())
    whole = slice(0, len(counts))
    np.testing.assert_allclose(batch.weights(whole, of_tokens=False), counts / counts.sum(), rtol=1e-6)
    of_tokens = batch.weights(whole, of_tokens=True)
    assert of_tokens.sum() == pytest.approx(1, rel=1e-5)
    assert len(of_tokens) == len(batch.tokens.ids)
    np.testing.assert_allclose(of_tokens[[0, -1]], counts[[0, -1]] / (counts * batch.tokens.lengths).sum(), rtol=1e-6)
