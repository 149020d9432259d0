"""The gradient of a batch does not depend on how its texts are split into micro-batches, nor across processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import run_ranks, sample_files
from small_runs import OBJECTIVES, build_on_sample, gradient_cache_of
from torch import Tensor, nn
from torch import distributed as dist

from angle.config import TrainConfig
from angle.config.build import build_config
from angle.distributed.process_group import shutdown_distributed
from angle.errors import TrainingError
from angle.objective.combined import LossOutput
from angle.structures import Batch
from angle.training import setup, sharding
from angle.training.distributed import check_equal_weights
from angle.training.gradient_cache import GradientCache, micro_batches
from angle.training.loop import fit


def with_all_graphs(
    components: setup.RunComponents, accelerator: Accelerator, batch: Batch, slices: list[slice]
) -> tuple[LossOutput, dict[str, Tensor]]:
    """Return the loss and the gradients of micro-batches whose graphs are all kept."""
    embeddings = torch.cat([components.trainable(*batch.micro_batch(part, accelerator.device))[0] for part in slices])
    loss = components.objective(embeddings, batch.structure)
    loss.total.backward()
    return loss, gradients(components.trainable)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Take the gradients off a model."""
    taken = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def norm(gradients: Iterable[Tensor]) -> Tensor:
    """Return the norm of the gradient of all weights."""
    return torch.stack([gradient.norm() for gradient in gradients]).norm()


def assert_equal_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Check that every weight's gradient is off by at most 1e-5 of its norm, or by rounding errors of the total."""
    assert actual.keys() == expected.keys()
    total_norm = norm(expected.values())
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * total_norm, name


@pytest.mark.parametrize("data_format", ["A", "B", "B+", "C", "A,B+,C", "B+,C"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_change_no_gradient(data_format: str, name: str) -> None:
    groups = {group: values for group, values in OBJECTIVES[name].items() if group != "loss" or "C" not in data_format}
    if data_format == "B+,C":
        groups["data"] = {"mix": "together"}
    components, accelerator = build_on_sample(data_format, **groups)
    batch = next(components.data.train.steps(2 if "," in data_format else 0))[0]
    full_loss = gradient_cache_of(components, accelerator).forward_backward(batch, 0.5)
    expected = gradients(components.trainable)
    for budget in (1, 40, 150):
        assert len(micro_batches(batch.max_lengths, budget)) > 2
        loss = gradient_cache_of(components, accelerator, budget).forward_backward(batch, 0.5)
        assert loss.terms.keys() == full_loss.terms.keys()
        torch.testing.assert_close(loss.total, full_loss.total, rtol=1e-5, atol=1e-6)
        for name, value in loss.terms.items():
            torch.testing.assert_close(value, full_loss.terms[name], rtol=1e-5, atol=1e-6)
        assert_equal_gradients(gradients(components.trainable), expected)


@pytest.mark.parametrize("data_format", ["B", "B+"])
@pytest.mark.parametrize("name", ["plain", "both"])
def test_gradient_matches_autograd_of_the_loss(name: str, data_format: str) -> None:
    components, accelerator = build_on_sample(data_format, **OBJECTIVES[name])
    batch = next(components.data.train.steps(0))[0]
    gradient_cache_of(components, accelerator).forward_backward(batch, 0.5)
    actual = gradients(components.trainable)
    ids, lengths = batch.micro_batch(slice(None), accelerator.device)
    embeddings, states = components.trainable(ids, lengths)
    loss = components.objective(embeddings, batch.structure).total
    if components.teacher is not None:
        teacher_states = components.teacher(ids, lengths, batch.text_ids)[batch.structure.flat_embedding_index]
        student_states = states[batch.structure.flat_embedding_index]
        temperature = components.config.teacher.temperature
        expected, log_probs = (
            torch.log_softmax(values / temperature, -1) for values in (teacher_states, student_states)
        )
        loss = loss + temperature * (expected.exp() * (expected - log_probs)).sum(-1).mean()
    (loss / 2).backward()
    assert_equal_gradients(actual, gradients(components.trainable))


def components_and_batch(precision: str, name: str) -> tuple[setup.RunComponents, Accelerator, Batch]:
    """Return what a run of format B in a precision works with, and its first batch."""
    train = {"batch_size": 24, "mixed_precision": precision}
    components, accelerator = build_on_sample("B", **OBJECTIVES[name], train=train)
    assert (
        accelerator.prepare(components.trainable) is components.trainable
    )  # whose forward has autocast around it from now on
    return components, accelerator, next(components.data.train.steps(0))[0]


@pytest.mark.parametrize("within", [False, True], ids=["", "within autocast"])
@pytest.mark.parametrize("name", ["plain", "espresso", "adapters"])
def test_autocast_rounds_each_micro_batch_as_with_its_graph_kept(name: str, within: bool) -> None:
    """Each is cast by itself in both, so only the order in which float32 gradients are added differs.

    Autocast remembers the weights that it cast. Were casts remembered from the pass without a graph, those weights
    would get no gradient in the pass with one: what `within` another autocast would come to light.
    """
    components, accelerator, batch = components_and_batch("bf16", name)
    for budget, count in ((600, 2), (150, 7)):
        slices = micro_batches(batch.max_lengths, budget)
        assert len(slices) == count
        with accelerator.autocast() if within else nullcontext():
            gradient_cache = GradientCache(
                components.trainable.train(), components.objective, None, accelerator, budget
            )
            cached = gradient_cache.forward_backward(batch)
        actual = gradients(components.trainable)
        loss, expected = with_all_graphs(components, accelerator, batch, slices)
        assert torch.equal(cached.total, loss.total)
        assert_equal_gradients(actual, expected)
        # Two numbers have the same sum in either order.
        assert count > 2 or all(torch.equal(actual[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("name", ["plain", "both", "adapters"])
def test_autocast_leaves_micro_batches_as_near_to_float32_as_the_whole_batch(name: str) -> None:
    """Cut otherwise, a batch is rounded in other places, and by about as much."""
    components, accelerator, batch = components_and_batch("no", name)
    gradient_cache_of(components, accelerator).forward_backward(batch)
    exact = gradients(components.trainable)
    components, accelerator, batch = components_and_batch("bf16", name)
    relative_errors = {}
    for budget in (None, 600, 40):
        gradient_cache_of(components, accelerator, budget).forward_backward(batch)
        actual = gradients(components.trainable)
        assert actual.keys() == exact.keys()
        errors = norm(actual[name] - gradient for name, gradient in exact.items())
        relative_errors[budget] = errors / norm(exact.values())
    assert 1e-4 < relative_errors[None] < 1e-2  # it was cast
    assert max(relative_errors.values()) < 2 * relative_errors[None]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_drawn_again(checkpointing: bool) -> None:
    components, accelerator = build_on_sample("A", dropout=0.3, model={"gradient_checkpointing": checkpointing})
    batch = next(components.data.train.steps(0))[0]
    gradient_cache = gradient_cache_of(components, accelerator, 80)
    slices = micro_batches(batch.max_lengths, 80)
    assert len(slices) > 3
    torch.manual_seed(5)
    cached = gradient_cache.forward_backward(batch)
    actual, rng_state = gradients(components.trainable), torch.get_rng_state()

    torch.manual_seed(5)
    loss, expected = with_all_graphs(components, accelerator, batch, slices)
    torch.testing.assert_close(cached.total, loss.total.detach(), rtol=1e-6, atol=0)
    assert_equal_gradients(actual, expected)
    assert torch.equal(rng_state, torch.get_rng_state())  # the next batch draws other numbers

    torch.manual_seed(6)
    assert gradient_cache.forward_backward(batch).total != cached.total


def _fewest_and_smallest(lengths: list[int], budget: int) -> tuple[int, int]:
    """Return the smallest possible number of micro-batches, and then of tokens in the largest, from all splits."""
    candidates = []
    for split in range(1 << (len(lengths) - 1)):
        bounds = [0, *(bound for bound in range(1, len(lengths)) if split >> (bound - 1) & 1), len(lengths)]
        micro = [lengths[start:stop] for start, stop in pairwise(bounds)]
        if all(sum(texts) <= budget or len(texts) == 1 for texts in micro):
            candidates.append((len(micro), max(sum(texts) for texts in micro)))
    return min(candidates)


@pytest.mark.parametrize("seed", range(40))
def test_micro_batches_are_few_and_even(seed: int) -> None:
    random = np.random.default_rng(seed)
    max_lengths = np.sort(random.integers(1, 40, random.integers(1, 12 if seed % 2 else 60)))[::-1]
    budget = int(random.integers(1, 120))
    slices = micro_batches(max_lengths, budget)
    positions = np.arange(len(max_lengths))
    np.testing.assert_array_equal(np.concatenate([positions[part] for part in slices]), positions)
    assert all(max_lengths[part].sum() <= budget or len(max_lengths[part]) == 1 for part in slices)
    if len(max_lengths) <= 12:
        largest = max(max_lengths[part].sum() for part in slices)
        assert (len(slices), largest) == _fewest_and_smallest(max_lengths.tolist(), budget)
    assert micro_batches(max_lengths, None) == [slice(0, len(max_lengths))]


def _count_exchanges() -> None:
    """Run on each of two processes: a step of two batches, in several micro-batches each."""
    rank = int(os.environ["RANK"])
    components, accelerator = build_on_sample("A", rows=8, train={"batch_size": 8, "gradient_accumulation_steps": 2})
    assert accelerator.num_processes == 2
    calls: list[int] = []

    def hook(_, bucket):  # which torch wants without annotations, or with its own
        calls.append(bucket.index())
        work = dist.all_reduce(bucket.buffer().div_(2), async_op=True)
        assert work is not None
        return work.get_future().then(lambda future: future.value()[0])

    optimizer = torch.optim.AdamW(components.trainable.parameters(), fused=True)
    model, _ = sharding.prepare(components.trainable, optimizer, accelerator)
    assert not model.broadcast_buffers  # no buffer is ever written to
    model.register_comm_hook(None, hook)
    gradient_cache = GradientCache(model, components.objective, None, accelerator, token_budget=60)
    batches = next(components.data.train.steps(0))
    assert len(batches) == 2
    assert all(len(micro_batches(batch.max_lengths, 60)) > 1 for batch in batches)
    for batch in batches:
        gradient_cache.forward_backward(batch, 0.5, sync_gradients=batch is batches[-1])
    assert len(calls) == len(set(calls)) >= 1
    torch.save(gradients(components.trainable), f"{rank}.pt")

    check_equal_weights(components.trainable)
    if rank:  # the same numbers in other places
        weight = next(p for p in components.trainable.parameters() if p.requires_grad).detach()
        weight[:2] = weight[:2].flip(0)
    with pytest.raises(TrainingError, match="weights differ after training"):
        check_equal_weights(components.trainable)
    del model, gradient_cache, hook  # DDP's threads must not outlive the interpreter with a function of Python
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_exchange_gradients_once_a_step(tmp_path: Path) -> None:
    run_ranks(_count_exchanges, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _train_and_leave() -> None:
    """Train on each of two processes, and write the names of the threads that are left at the end."""
    settings = {"batch_size": 8, "max_steps": 1, "output_dir": "run"}
    fit(build_config({"data": {"train": {"name_or_path": "train.jsonl"}}, "train": settings}, TrainConfig))
    shutdown_distributed()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    Path(f"{os.environ['RANK']}.txt").write_text(" ".join(names))


@pytest.mark.slow
def test_no_thread_of_the_process_group_outlives_a_run(tmp_path: Path) -> None:
    """Such a thread can abort the process while the interpreter ends, after a finished run."""
    sample_files(tmp_path)
    run_ranks(_train_and_leave, tmp_path)
    for rank in (0, 1):
        names = (tmp_path / f"{rank}.txt").read_text()
        assert names
        assert "gloo" not in names


def test_a_batch_s_weights_are_those_of_its_roles() -> None:
    components, _ = build_on_sample("B")
    batch: Batch = next(components.data.train.steps(0))[0]
    counts = np.bincount(batch.structure.flat_embedding_index)
    all_texts = slice(0, len(counts))
    np.testing.assert_allclose(batch.weights(all_texts, of_tokens=False), counts / counts.sum(), rtol=1e-6)
    of_tokens = batch.weights(all_texts, of_tokens=True)
    assert of_tokens.sum() == pytest.approx(1, rel=1e-5)
    assert len(of_tokens) == len(batch.tokens.ids)
    np.testing.assert_allclose(of_tokens[[0, -1]], counts[[0, -1]] / (counts * batch.tokens.lengths).sum(), rtol=1e-6)
