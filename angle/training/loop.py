"""The training loop: set up, resume, step, finish. Read it from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from angle.config import CONFIG_FILE, TrainConfig
from angle.config.resume import resume_config
from angle.data.batching import BatchSpec, collate
from angle.data.corpus import Corpus
from angle.data.prefetch import prefetch
from angle.distributed.environment import launch_command, script_command, world_size
from angle.errors import ConfigError, DataError
from angle.evaluation.encoding import encode_distributed
from angle.evaluation.sts import pair_scores, word_overlap
from angle.files import relative_to_here
from angle.kernels.allocator import keep_freed_memory
from angle.modeling.encoder import Encoder
from angle.modeling.trainable import TrainableEncoder
from angle.objective.combined import CombinedLoss
from angle.structures import Batch, Tokens
from angle.tracking.tracker import Tracker, check_credentials, tracking_mode
from angle.training import setup
from angle.training.checkpoint import Progress, collect_state, load_state, save_state, seed_everything
from angle.training.clipping import clip_gradients
from angle.training.describe import banner, describe_environment
from angle.training.distributed import check_equal_weights
from angle.training.meter import Meter
from angle.training.publish import check_hub, publish, publish_finished
from angle.training.result import Result
from angle.training.run_folder import RunFolder, RunState
from angle.training.schedule import lr_factor, warmup_steps
from angle.training.sharding import full_adapter_weights, prepare
from angle.training.step import Step

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Run:
    """What the stages of the loop share."""

    config: TrainConfig
    accelerator: Accelerator
    folder: RunFolder
    tracker: Tracker
    data: setup.Data
    trainable: TrainableEncoder
    step: Step
    optimizer: Any
    valid_loss: CombinedLoss | None
    """The loss of the last layer, for the format of data.valid."""
    total_steps: int
    progress: Progress = field(default_factory=Progress)

    @property
    def encoder(self) -> Encoder:
        """The encoder that is trained."""
        return self.trainable.encoder


def fit(config: TrainConfig, named: Collection[str] = ()) -> Result:
    """Train the encoder that `config` describes, in its run folder, and return the result.

    An unfinished run with the same settings is resumed. A finished one is only reported, and pushed if that is
    requested and not done yet. A failed push does not raise: the result reports it.

    Args:
        config: the settings.
        named: dotted names of the settings that were requested explicitly, even if they equal the defaults. A resumed
            run has its own settings, which the named ones must not contradict.

    Raises:
        ConfigError, DataError: anything wrong with the settings or the data, before any training.
        TrainingError: a loss that is not finite.

    """
    if config.train.dry_run:
        raise ConfigError("train.dry_run=true trains nothing, so fit has nothing to do: call angle.dry_run instead.")
    requested, folder, state = config, _folder(config), RunState.NEW
    if requested.train.resume is None:
        state = folder.examine(requested)
    elif (state := folder.state()) is RunState.NEW:
        raise ConfigError(f"train.resume={folder.path} is no run folder: it has no {CONFIG_FILE}.")
    if state is not RunState.NEW:
        config = resume_config(folder.resolved(), requested, folder.requested(), named)
    if requested.hub.push or requested.train.resume is None:
        config = replace(config, hub=requested.hub)  # as a whole: saved settings must not make a private model public
    if state is RunState.FINISHED:
        found = Result(folder.path, finished_before=True, **folder.record()["result"])
        return publish_finished(folder, config.hub, found)
    config = replace(
        config,
        train=replace(config.train, output_dir=str(folder.path)),
        tracking=replace(config.tracking, mode=tracking_mode(config.tracking.mode)),
    )
    accelerator = setup.start_accelerator(config)
    with ExitStack() as stack:
        stack.enter_context(keep_freed_memory(accelerator.device))
        run = _prepare(config, requested, accelerator, folder, state, stack)
        try:
            run.tracker.info(banner(run.config, run.encoder, run.data, run.total_steps, accelerator))
            _resume(run)
            with closing(prefetch(run.data.train.steps(run.progress.step))) as steps:
                _train(run, steps)
            result = _finish(run)
            if accelerator.is_main_process:
                result = publish(folder, config.hub, result)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                run.tracker.stop_progress()
                run.tracker.info(
                    f"Stopped at step {run.progress.step}; go on, from step {folder.last_step}, with "
                    f"{launch_command(world_size())} {script_command('train.py')} "
                    f"train.resume={relative_to_here(folder.path)}"
                )
            run.tracker.close(failed=True)
            raise
        run.tracker.close()
    accelerator.free_memory()
    return result


def _folder(config: TrainConfig) -> RunFolder:
    """Return the run's folder: the one to resume in, the given one, or a new one."""
    given = config.train.resume or config.train.output_dir
    if given is None and world_size() > 1:
        raise ConfigError("train.output_dir is missing: several processes cannot each make up a folder of their own.")
    return RunFolder(Path(given or time.strftime("runs/%Y-%m-%d/%H-%M-%S")))


def _prepare(
    config: TrainConfig,
    requested: TrainConfig,
    accelerator: Accelerator,
    folder: RunFolder,
    state: RunState,
    stack: ExitStack,
) -> Run:
    """Build everything; write to the run folder only once all of it has been built."""
    if state is RunState.UNFINISHED:
        setup.check_processes(folder.record(), accelerator)
    if accelerator.is_main_process:
        check_hub(requested, folder.requested())
    built = setup.build(config, accelerator)
    config, data = built.config, built.data
    if state is RunState.UNFINISHED and folder.record()["data"] != data.fingerprints:
        raise DataError(
            f"The data has changed since the run in {folder.path} was started, so going on would mix two "
            f"data sets: start a new run with another train.output_dir."
        )
    if accelerator.is_main_process:
        check_credentials(config.tracking.mode)
        stack.enter_context(folder.locked())
        if state is RunState.NEW and folder.examine(requested) is RunState.NEW:
            record = describe_environment(config, data, accelerator) | {"kernels": built.encoder.kernel_status()}
            folder.create(config, requested, record)
    accelerator.wait_for_everyone()
    tracker = Tracker(config, folder, is_main=accelerator.is_main_process, resumed_id=folder.record().get("wandb_id"))
    if tracker.wandb_id is not None:
        folder.update(wandb_id=tracker.wandb_id)
    model, optimizer = prepare(built.trainable, setup.make_optimizer(built.trainable, config), accelerator)
    return Run(
        config=config,
        accelerator=accelerator,
        folder=folder,
        tracker=tracker,
        data=data,
        trainable=built.trainable,
        step=Step(model, built.objective, built.teacher, accelerator, config.train.tokens_at_once),
        optimizer=optimizer,
        valid_loss=built.valid_loss,
        total_steps=built.total_steps,
    )


def _resume(run: Run) -> None:
    """Resume from the newest intact checkpoint; without one, evaluate the untrained model and start."""
    accelerator, config = run.accelerator, run.config
    seed_everything(config.train.seed, rank=accelerator.process_index)
    checkpoint = run.folder.newest_checkpoint(run.tracker.warning)
    if checkpoint is not None:
        run.progress = load_state(checkpoint, run.trainable, run.optimizer, accelerator)
        run.tracker.info(f"{'resume':8}at step {run.progress.step} from {relative_to_here(checkpoint)}")
    if accelerator.is_main_process:
        run.folder.forget_after(run.progress.step)
    if run.data.test is None or run.progress.step:
        return
    score = _spearman(run, run.trainable, run.data.test)
    if accelerator.is_main_process:
        overlap = word_overlap(run.data.test, set(run.encoder.tokenizer.tokenizer.all_special_ids))
        run.folder.update(test_before=score, test_word_overlap=overlap)


def _train(run: Run, steps: Iterator[list[Batch]]) -> None:
    config, progress, tracker = run.config.train, run.progress, run.tracker
    assert config.learning_rate is not None  # `setup.build` sets it
    peak_lr, warmup = config.learning_rate, warmup_steps(config.warmup_steps, run.total_steps)
    per_epoch = run.data.train.steps_per_epoch
    save_every = math.ceil(run.total_steps / 10) if config.save_steps is None else config.save_steps
    meter = Meter(run.encoder, run.data.train, run.tracker, progress)
    tracker.start_progress(progress.step, run.total_steps)
    run.step.model.train()
    while progress.step < run.total_steps:
        batches = next(steps)
        lr = peak_lr * lr_factor(progress.step, run.total_steps, warmup, config.scheduler)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        for batch in batches:
            meter.add(batch, run.step.forward_backward(batch, 1 / len(batches), sync_gradients=batch is batches[-1]))
        grad_norm = clip_gradients(run.step.model.parameters(), config.max_grad_norm or math.inf, run.accelerator)
        run.optimizer.step()
        run.optimizer.zero_grad()
        progress.step += 1
        tracker.advance()

        at_end = progress.step == run.total_steps
        evaluate = at_end or _due(progress.step, config.eval_steps, per_epoch)
        save = bool(save_every) and (at_end or progress.step % save_every == 0)
        say = evaluate or progress.step % config.logging_steps == 0
        if say or save:  # record all that precedes a checkpoint, so that a resumed run records the same
            meter.report(lr, grad_norm, say=say)
        if evaluate:
            _evaluate(run)
        if save:
            _checkpoint(run)
        if evaluate or save:
            meter.restart_clock()
    tracker.stop_progress()


def _due(step: int, every: int | None, per_epoch: int | None) -> bool:
    """Return whether something is due after a step, given its interval: None for once per epoch, 0 for never."""
    interval = per_epoch if every is None else every
    return interval is not None and interval > 0 and step % interval == 0


def _evaluate(run: Run) -> None:
    """Evaluate on the validation sets, across all processes; save the model if it is the best so far."""
    numbers: dict[str, float] = {}
    if run.data.valid is not None and run.valid_loss is not None:
        losses = _valid_loss(run, run.data.valid, run.valid_loss)
        numbers |= {f"valid/{name}": value for name, value in losses.items()}
    if run.data.valid_sts is not None:
        score = _spearman(run, run.trainable, run.data.valid_sts)
        numbers["valid/spearman"] = score
        if score > run.progress.best_score:
            run.progress.best_score, run.progress.best_step = score, run.progress.step
            _save(run, "best")
    if numbers and run.accelerator.is_main_process:
        run.tracker.log_metrics(run.progress.step, numbers)
        shown = ", ".join(f"{name.removeprefix('valid/')} {value:.4f}" for name, value in numbers.items())
        best = " (best so far)" if run.progress.best_step == run.progress.step else ""
        run.tracker.info(f"step {run.progress.step}  validation: {shown}{best}")
    run.accelerator.wait_for_everyone()


def _spearman(run: Run, encoder: Encoder | TrainableEncoder, corpus: Corpus) -> float:
    """Return the Spearman correlation on a corpus."""
    return pair_scores(_encode(run, encoder, corpus.tokens), corpus).spearman


def _encode(run: Run, encoder: Encoder | TrainableEncoder, tokens: Tokens) -> Tensor:
    """Return the embeddings of texts, computed across all processes in the precision of training."""
    with run.accelerator.autocast():
        return encode_distributed(encoder.encode_tokens, tokens, run.accelerator)


@torch.no_grad()
def _valid_loss(run: Run, corpus: Corpus, loss_of: CombinedLoss) -> dict[str, float]:
    """Return the mean loss and terms over a corpus, in equal batches no larger than those of training.

    The loss grows with the number of rows compared, so a small last batch would count for less than its rows.
    """
    rows = run.config.train.batch_size * run.accelerator.num_processes
    batch_spec = BatchSpec(rows, duplicates=run.config.data.duplicates, shuffle=False)
    parts = np.array_split(np.arange(len(corpus)), -(-len(corpus) // rows))
    sums: dict[str, float] = {}
    device = run.accelerator.device
    for part in parts:
        batch = collate(corpus, part, 0, batch_spec)
        loss = loss_of(_encode(run, run.trainable, batch.tokens).to(device), batch.structure.to(device))
        for name, value in ({"loss": loss.total} | {f"loss/{n}": v for n, v in loss.terms.items()}).items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(parts)
    return sums


def _save(run: Run, name: str) -> None:
    """Save the current model in the run folder, under the given name."""
    adapters = full_adapter_weights(run.encoder, run.accelerator)
    if run.accelerator.is_main_process:
        run.folder.replace(name, lambda scratch: run.encoder.save(scratch, adapters))


def _checkpoint(run: Run) -> None:
    """Save everything needed to resume from here."""
    state = collect_state(run.trainable, run.optimizer, run.accelerator)
    if run.accelerator.is_main_process:
        run.folder.save_checkpoint(
            run.progress.step,
            lambda scratch: save_state(scratch, state, run.accelerator, run.progress),
            run.config.train.save_total_limit,
        )
    run.accelerator.wait_for_everyone()


def _finish(run: Run) -> Result:
    """Save the final model, evaluate the best one, or else the final one, on the test set, and close the record."""
    progress, folder = run.progress, run.folder
    check_equal_weights(run.trainable)
    result, test_after = Result(folder.path), None
    if run.data.test is not None:
        encoder: Encoder | TrainableEncoder = run.trainable
        if progress.best_step not in (None, progress.step):
            best = replace(run.config.model, name_or_path=str(folder.path / "best"), adapter=None)
            encoder = Encoder.load(best, run.config.pooling, merge=False).to(run.accelerator.device)
        test_after = _spearman(run, encoder, run.data.test)
    _save(run, "final")
    if run.accelerator.is_main_process:
        record = folder.record()
        outcome: dict[str, Any] = {
            "best_score": None if progress.best_step is None else progress.best_score,
            "best_step": progress.best_step,
            "test_before": record.get("test_before"),
            "test_after": test_after,
            "test_word_overlap": record.get("test_word_overlap"),
        }
        if test_after is not None:
            run.tracker.log_metrics(progress.step, {"test/spearman": test_after})
        folder.update(finished=True, result=outcome, seconds=round(progress.seconds, 1), texts=progress.texts)
        result = Result(folder.path, **outcome)
    run.accelerator.wait_for_everyone()
    return result
