"""The training loop, to be read from top to bottom: set up, build, resume, loop, finish."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from angle.config import RUN_FILE, TrainConfig, enumerate_words
from angle.config.resume import resume_config
from angle.data.prefetch import prefetch
from angle.distributed.environment import launch_command, script_command, world_size
from angle.errors import ConfigError, StoppedError, TrainingError
from angle.evaluation.encoding import encode_distributed
from angle.evaluation.evaluators.sts import word_overlap
from angle.evaluation.run_evaluators import TEST_METRIC, RunEvaluators, metric_named
from angle.files import relative_to_cwd
from angle.kernels.allocator import keep_freed_memory
from angle.modeling.encoder import Encoder
from angle.modeling.trainable import TrainableEncoder
from angle.structures import Batch, Tokens
from angle.tracking.sink import RunInfo
from angle.tracking.tracker import Tracker, apply_environment, check_sinks, open_tracker
from angle.training import setup
from angle.training.accelerator import check_resumed_processes, start_accelerator
from angle.training.checkpoint import (
    Progress,
    collect_state,
    load_saved_model,
    load_state,
    save_state,
    seed_everything,
)
from angle.training.clipping import clip_gradients
from angle.training.data import RunData
from angle.training.describe import banner, describe_environment
from angle.training.distributed import check_equal_weights, check_finite_weights, from_main_process
from angle.training.gradient_cache import GradientCache
from angle.training.launcher import check_launcher
from angle.training.meter import Meter
from angle.training.notes import notes_on
from angle.training.publish import check_hub, publish, publish_finished
from angle.training.result import Result
from angle.training.run_folder import RunFolder, RunState
from angle.training.schedule import lr_factor, warmup_steps
from angle.training.sharding import check_shardable, full_adapter_weights, prepare, sync_buffers
from angle.training.stop_signals import SAVE, StopSignals

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Run:
    """What the stages of the loop share."""

    config: TrainConfig
    accelerator: Accelerator
    folder: RunFolder
    tracker: Tracker
    data: RunData
    trainable: TrainableEncoder
    gradient_cache: GradientCache
    optimizer: Any
    evaluators: RunEvaluators
    total_steps: int
    progress: Progress = field(default_factory=Progress)

    @property
    def encoder(self) -> Encoder:
        """The encoder that is trained."""
        return self.trainable.encoder

    def recovery(self) -> str:
        """Return what is left of the run if it fails now."""
        checkpoint = next(iter(self.folder.checkpoints()), None)
        if checkpoint is None:
            return "There is no checkpoint before it."
        return f"The last good checkpoint is {relative_to_cwd(checkpoint)}."

    def encode(self, tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
        """Return embeddings for an evaluator, computed across all processes in the precision of training."""
        with self.accelerator.autocast():
            return encode_distributed(partial(self.trainable.encode_tokens, depths=depths), tokens, self.accelerator)


def fit(config: TrainConfig, explicit_keys: Collection[str] = ()) -> Result:
    """Train the encoder that `config` describes, in its run folder, and return the result.

    An unfinished run with the same settings is resumed. A finished one is only reported, and pushed if that is
    requested and not done yet. A failed push does not raise: the result reports it.

    Args:
        config: the settings.
        explicit_keys: dotted keys of the settings that were requested explicitly, even if they equal the defaults. A
            resumed run has its own settings, which these must not contradict.

    Raises:
        ConfigError, DataError: anything wrong with the settings or the data, before any training.
        TrainingError: a loss or a gradient that is not finite.
        StoppedError: a signal has ended the run, which can go on; a KeyboardInterrupt.

    """
    if config.train.dry_run:
        raise ConfigError("train.dry_run=true trains nothing, so fit has nothing to do: call angle.dry_run instead.")
    requested_config, state = config, RunState.NEW
    folder = RunFolder.choose(config.train.resume, config.train.output_dir)
    if requested_config.train.resume is None:
        state = folder.check_config(requested_config)
    elif (state := folder.state()) is RunState.NEW:
        raise ConfigError(f"train.resume={folder.path} is no run folder: it has no {RUN_FILE}.")
    if state is not RunState.NEW:
        config = resume_config(folder.resolved_config(), requested_config, folder.requested_config(), explicit_keys)
    if requested_config.hub.push or requested_config.train.resume is None:
        # As a whole: saved settings must not make a private model public.
        config = replace(config, hub=requested_config.hub)
    if state is RunState.FINISHED:
        result = Result(folder.path, already_finished=True, **folder.record()["result"])
        return publish_finished(folder, config.hub, result)
    config = replace(
        config,
        train=replace(config.train, output_dir=str(folder.path)),
        tracking=apply_environment(config.tracking),
    )
    metric_named(config.train.best_metric)  # refuses what does not exist before anything is loaded
    check_launcher(config.train)
    check_shardable(config)
    accelerator = start_accelerator(config.train.mixed_precision)
    with ExitStack() as stack:
        run = _prepare(config, requested_config, accelerator, folder, state, stack)
        signals = StopSignals(accelerator.num_processes)
        stack.enter_context(signals.noted())
        stack.enter_context(folder.explained_disk_errors())
        try:
            run.tracker.info(banner(run.config, run.encoder, run.data, run.total_steps, accelerator))
            for note in notes_on(run.config, run.data, run.total_steps):
                run.tracker.note(note)
            _resume(run)
            steps = run.data.train.steps(run.progress.step, run.progress.rows_read)
            with closing(prefetch(steps)) as prepared_steps, signals.steps():
                _train(run, prepared_steps, signals)
            result = _finish(run)
            if accelerator.is_main_process:
                result = publish(folder, config.hub, result)
        except KeyboardInterrupt as stop:
            run.tracker.stop_progress()
            cause = f" by {stop}" if isinstance(stop, StoppedError) else ""
            run.tracker.info(
                f"Stopped at step {run.progress.step}{cause}; go on, from step {folder.last_step}, with "
                f"{launch_command(world_size())} {script_command('train.py')} "
                f"train.resume={relative_to_cwd(folder.path)}"
            )
            raise
    accelerator.free_memory()
    return result


def _prepare(
    config: TrainConfig,
    requested_config: TrainConfig,
    accelerator: Accelerator,
    folder: RunFolder,
    state: RunState,
    stack: ExitStack,
) -> Run:
    """Build everything; write to the run folder only once all of it has been built."""
    hub_warning = None
    if state is RunState.UNFINISHED:
        check_resumed_processes(folder.record()["hardware"]["processes"], accelerator.num_processes)
    if accelerator.is_main_process:
        hub_warning = check_hub(requested_config.hub, folder.requested_config().hub)
        check_sinks(config.tracking)
    components = setup.build(config, accelerator)
    config, data, kernels = components.config, components.data, components.encoder.kernels
    stack.enter_context(
        keep_freed_memory(components.trainable, enabled=kernels is not None and kernels.has("allocator"))
    )
    if state is RunState.UNFINISHED:
        folder.check_inputs(data.fingerprints, components.fingerprints, config)
    if accelerator.is_main_process:
        stack.enter_context(folder.locked())
        if state is RunState.NEW and folder.check_config(requested_config) is RunState.NEW:
            record: dict[str, Any] = {"finished": False, "seed": config.train.seed}
            record |= {"data": data.fingerprints, "weights": components.fingerprints}
            record |= describe_environment(accelerator) | {"kernels": components.encoder.kernel_status()}
            record["layout"] = str(components.encoder.layout)
            folder.create(config, requested_config, record)
    accelerator.wait_for_everyone()
    run_info = RunInfo(folder.path, config.tracking, asdict(config), folder.record())
    tracker = stack.enter_context(open_tracker(run_info, is_main=accelerator.is_main_process))
    if hub_warning is not None:
        tracker.warning(hub_warning)
    if metadata := tracker.run_metadata():
        folder.update(**metadata)
    model, optimizer = prepare(
        components.trainable, setup.make_optimizer(components.trainable, config.train.weight_decay), accelerator
    )
    return Run(
        config=config,
        accelerator=accelerator,
        folder=folder,
        tracker=tracker,
        data=data,
        trainable=components.trainable,
        gradient_cache=GradientCache(
            model, components.objective, components.teacher, accelerator, config.train.max_tokens_per_micro_batch
        ),
        optimizer=optimizer,
        evaluators=components.evaluators,
        total_steps=components.total_steps,
    )


def _resume(run: Run) -> None:
    """Resume from the newest intact checkpoint; without one, evaluate the untrained model and start."""
    accelerator, config = run.accelerator, run.config
    seed_everything(config.train.seed, rank=accelerator.process_index)
    folder = run.folder
    checkpoint, best = from_main_process(
        lambda: (folder.newest_checkpoint(run.tracker.warning), folder.model_notes("best")), accelerator
    )
    if checkpoint is not None:
        run.progress = load_state(checkpoint, run.trainable, run.optimizer, accelerator)
        run.tracker.info(f"{'resume':8}at step {run.progress.step} from {relative_to_cwd(checkpoint)}")
    if best is not None and best["step"] > run.progress.step:
        # It was chosen after the checkpoint, and steps are repeated from there: no earlier one was better.
        run.progress.best_score, run.progress.best_step = best["score"], best["step"]
    run.tracker.rewind(run.progress.step)
    if accelerator.is_main_process:
        folder.prune_checkpoints(run.progress.step, config.train.save_total_limit)
    if run.data.test is None or run.progress.step:
        return
    score = run.evaluators.score_test(run.encode)
    if accelerator.is_main_process:
        overlap = word_overlap(run.data.test, set(run.encoder.tokenizer.tokenizer.all_special_ids))
        folder.update(test_before=score, test_word_overlap=overlap)


def _train(run: Run, steps: Iterator[list[Batch]], signals: StopSignals) -> None:
    """Take the optimiser steps that are left; report, evaluate and save at their intervals, or when signals say so.

    Raises:
        StoppedError: a signal has ended the run; a checkpoint has all steps.

    """
    config, progress, tracker = run.config.train, run.progress, run.tracker
    assert config.learning_rate is not None  # `setup.build` sets it
    peak_lr, warmup = config.learning_rate, warmup_steps(config.warmup_steps, run.total_steps)
    steps_per_epoch = run.data.train.steps_per_epoch
    save_every = math.ceil(run.total_steps / 10) if config.save_steps is None else config.save_steps
    meter = Meter(run.encoder, run.data.train, run.tracker, progress, run.recovery)
    tracker.start_progress(progress.step, run.total_steps)
    gradient_cache = run.gradient_cache
    gradient_cache.model.train()
    while progress.step < run.total_steps:
        batches = next(steps)
        lr = peak_lr * lr_factor(progress.step, run.total_steps, warmup, config.scheduler)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        for batch in batches:
            meter.add(
                batch, gradient_cache.forward_backward(batch, 1 / len(batches), sync_gradients=batch is batches[-1])
            )
        grad_norm = clip_gradients(gradient_cache.model.parameters(), config.max_grad_norm or math.inf, run.accelerator)
        run.optimizer.step()
        run.optimizer.zero_grad()
        meter.add_step(grad_norm, overflowed=run.optimizer.step_was_skipped)
        progress.step += 1
        progress.rows_read = batches[-1].rows_read
        tracker.advance()

        is_last_step = progress.step == run.total_steps
        evaluate = is_last_step or _is_due(
            progress.step, steps_per_epoch if config.eval_steps is None else config.eval_steps
        )
        save = save_every > 0 and (is_last_step or _is_due(progress.step, save_every))
        log = evaluate or _is_due(progress.step, config.logging_steps)
        if log or save:  # record all that precedes a checkpoint, so that a resumed run records the same
            meter.report(lr, show=log)
        if evaluate:
            _evaluate(run)
        stop_now, save_now = signals.agree()
        if save or save_now:
            progress.unreported = meter.unreported()
            _checkpoint(run)
        if evaluate or save or save_now:
            meter.restart_clock()
        if stop_now:
            raise signals.stopped()
        if save_now:
            tracker.info(f"step {progress.step}  saved, as {SAVE} asked")
    tracker.stop_progress()


def _is_due(step: int, interval: int | None) -> bool:
    """Return whether something is due after a step; with an interval of None or 0 it never is."""
    return interval is not None and interval > 0 and step % interval == 0


def _evaluate(run: Run) -> None:
    """Evaluate on the validation sets, across all processes; save the model if it is the best so far."""
    progress, best_metric = run.progress, run.evaluators.best_metric
    sync_buffers(run.trainable, run.accelerator)
    values = run.evaluators.validate(run.encode)
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
        raise TrainingError(
            f"{enumerate_words([f'valid/{name} is {value}' for name, value in bad.items()])} after step "
            f"{progress.step}. {run.recovery()} Start a new run with a lower train.learning_rate."
        )
    if best_metric is not None and best_metric.is_better(values[best_metric.name], progress.best_score):
        progress.best_score, progress.best_step = values[best_metric.name], progress.step
        _save(run, "best", step=progress.step, score=progress.best_score)
    if values and run.accelerator.is_main_process:
        run.tracker.log_metrics(progress.step, {f"valid/{name}": value for name, value in values.items()})
        summary = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        best = " (best so far)" if progress.best_step == progress.step else ""
        run.tracker.info(f"step {progress.step}  validation: {summary}{best}")
    run.accelerator.wait_for_everyone()


def _save(run: Run, name: str, **notes: Any) -> None:
    """Save the current model in the run folder, under the given name, with notes for the folder's manifest."""
    check_finite_weights(run.trainable, run.progress.step, run.recovery())
    adapters = full_adapter_weights(run.encoder, run.accelerator)
    if run.accelerator.is_main_process:
        run.folder.replace(name, lambda temp_folder: run.encoder.save(temp_folder, adapters), **notes)


def _checkpoint(run: Run) -> None:
    """Save everything needed to resume from here."""
    check_finite_weights(run.trainable, run.progress.step, run.recovery())
    state = collect_state(run.trainable, run.optimizer, run.accelerator)
    if run.accelerator.is_main_process:
        run.tracker.sync()
        run.folder.save_checkpoint(
            run.progress.step,
            lambda temp_folder: save_state(temp_folder, state, run.accelerator, run.progress),
            run.config.train.save_total_limit,
            run.progress.best_step,
        )
    run.accelerator.wait_for_everyone()


def _finish(run: Run) -> Result:
    """Save the final model, then measure the best one, or else the final one, on the test set, and close the record.

    The best weights are loaded into the trained model, because the GPU may not have memory for a second one.
    """
    progress, folder = run.progress, run.folder
    check_equal_weights(run.trainable)
    _save(run, "final")
    run.optimizer.state.clear()  # AdamW's moments would occupy the memory that loading the best weights may need
    if run.data.test is not None and progress.best_step not in (None, progress.step):
        load_saved_model(folder.path / "best", run.encoder, run.config.model)
    sync_buffers(run.trainable, run.accelerator)
    test_score = run.evaluators.score_test(run.encode)
    result = Result(folder.path)
    if run.accelerator.is_main_process:
        record, best_metric = folder.record(), run.evaluators.best_metric
        scores: dict[str, Any] = {
            "best_metric": None if best_metric is None else best_metric.name,
            "best_score": progress.best_score,
            "best_step": progress.best_step,
            "test_before": record.get("test_before"),
            "test_after": test_score,
            "test_word_overlap": record.get("test_word_overlap"),
        }
        if test_score is not None:
            run.tracker.log_metrics(progress.step, {f"test/{TEST_METRIC.name}": test_score})
        run.tracker.sync()
        folder.update(finished=True, result=scores, seconds=round(progress.seconds, 1), texts=progress.texts)
        if progress.overflows:
            folder.update(overflows=progress.overflows)
        result = Result(folder.path, **scores)
    run.accelerator.wait_for_everyone()
    return result
