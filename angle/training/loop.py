"""The training loop, to be read from top to bottom: set up, build, resume, loop, finish."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from angle.config import RUN_FILE, TrainConfig
from angle.config.overrides import hydra_override
from angle.config.resume import resume_config
from angle.data.prefetch import prefetch
from angle.data.training_data import InMemoryTrainingData
from angle.distributed.environment import launch_command, script_command, world_size
from angle.errors import ConfigError, DataError, StoppedError
from angle.evaluation.encoding import encode_distributed
from angle.evaluation.pairs import neighbours_table
from angle.evaluation.predictions import AFTER, BEFORE, Predictions
from angle.evaluation.run_evaluators import TEST_METRIC, metric_named
from angle.export.example import make_example
from angle.files import relative_to_cwd
from angle.kernels.allocator import keep_freed_memory
from angle.structures import Batch
from angle.terminal import labelled, wrapped_command
from angle.tracking.sink import RunInfo
from angle.tracking.tracker import apply_environment, check_sinks, open_tracker
from angle.training import setup
from angle.training.accelerator import check_resumed_processes, start_accelerator
from angle.training.average import WeightAverage
from angle.training.checkpoint import (
    collect_state,
    load_saved_model,
    load_state,
    save_state,
    seed_everything,
)
from angle.training.clipping import clip_gradients
from angle.training.describe import banner, describe_environment
from angle.training.distributed import check_equal_weights, check_finite_weights, from_main_process
from angle.training.gradient_cache import GradientCache
from angle.training.launcher import check_launcher
from angle.training.meter import Meter
from angle.training.notes import notes_on
from angle.training.optimizer import make_optimizer, set_learning_rate
from angle.training.publish import check_hub, publish, publish_finished
from angle.training.result import Result
from angle.training.run import Pruner, Run
from angle.training.run_folder import RunFolder, RunState
from angle.training.schedule import lr_factor, number_of_steps
from angle.training.sharding import check_shardable, prepare, sync_buffers
from angle.training.stop_signals import SAVE, StopSignals
from angle.training.validation import evaluate, evaluate_untrained, is_out_of_patience, is_stopped_early

if TYPE_CHECKING:
    from accelerate import Accelerator


def fit(config: TrainConfig, explicit_keys: Collection[str] = (), pruner: Pruner | None = None) -> Result:
    """Train the encoder that `config` describes, in its run folder, and return the result.

    An unfinished run with the same settings is resumed. A finished one is only reported, and pushed if that is
    requested and not done yet. A failed push does not raise: the result reports it.

    Args:
        config: the settings.
        explicit_keys: dotted keys of the settings that were requested explicitly, even if they equal the defaults. A
            resumed run has its own settings, which these must not contradict.
        pruner: asked after every evaluation whether to stop early, in a search for settings.

    Raises:
        ConfigError, DataError: anything wrong with the settings or the data, before any training.
        TrainingError: a loss or a gradient that is not finite.
        StoppedError: a signal has ended the run, which can go on; a KeyboardInterrupt.

    """
    if config.train.dry_run:
        raise ConfigError("train.dry_run=true trains nothing, so fit has nothing to do: call angle.dry_run instead.")
    if config.hparams.enabled:
        raise ConfigError(
            "hparams.enabled=true searches in a sweep, of which fit is one run: leave it out, or type "
            "python train.py -m hparams=optuna."
        )
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
        run.pruner = pruner
        signals = StopSignals(accelerator.num_processes)
        stack.enter_context(signals.noted())
        stack.enter_context(folder.explained_disk_errors())
        try:
            for label, text in banner(run.config, run.encoder, run.data, run.total_steps, accelerator):
                run.tracker.header(label, text)
            notes = notes_on(run.config, run.data, run.total_steps)
            for note in notes:
                run.tracker.header("note", note)
            if accelerator.is_main_process:
                folder.update(notes=notes)
            _resume(run)
            steps = run.data.train.steps(run.progress.step, run.progress.rows_read)
            with closing(prefetch(steps)) as prepared_steps, signals.steps():
                _train(run, prepared_steps, signals)
            with run.average.applied():
                result = _finish(run)
            if accelerator.is_main_process:
                result = publish(folder, config.hub, result)
        except KeyboardInterrupt as stop:
            run.tracker.stop_progress()
            cause = f" by {stop}" if isinstance(stop, StoppedError) else ""
            resume = shlex.quote(hydra_override("train.resume", relative_to_cwd(folder.path)))
            run.tracker.info(
                f"Stopped at step {run.progress.step}{cause}; go on, from step {folder.last_step}, with\n"
                + wrapped_command([launch_command(world_size()), script_command("train.py"), resume])
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
        folder.check_decisions(config)
        folder.check_inputs(data.fingerprints, components.fingerprints, config)
    if accelerator.is_main_process:
        stack.enter_context(folder.locked())
        if state is RunState.NEW and folder.check_config(requested_config) is RunState.NEW:
            record: dict[str, Any] = {"finished": False, "seed": config.train.seed}
            record |= {"data": data.fingerprints, "rows": data.num_rows, "weights": components.fingerprints}
            record |= describe_environment(accelerator) | {"kernels": components.encoder.kernel_status()}
            record["steps_per_epoch"] = data.train.steps_per_epoch
            record["layout"] = str(components.encoder.layout)
            folder.create(config, requested_config, record)
    accelerator.wait_for_everyone()
    run_info = RunInfo(folder.path, config.tracking, asdict(config), folder.record())
    tracker = stack.enter_context(open_tracker(run_info, is_main=accelerator.is_main_process))
    if hub_warning is not None:
        tracker.warning(hub_warning)
    if metadata := tracker.run_metadata():
        folder.update(**metadata)
    model, optimizer = prepare(components.trainable, make_optimizer(components.trainable, config.train), accelerator)
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
        average=WeightAverage.of(components.trainable, config.train, components.total_steps),
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
        run.progress = load_state(checkpoint, run.trainable, run.optimizer, run.average, accelerator)
        run.tracker.info(labelled("resume", f"at step {run.progress.step} from {relative_to_cwd(checkpoint)}"))
    if best is not None and best["step"] > run.progress.step:
        # It was chosen after the checkpoint, and steps are repeated from there: no earlier one was better.
        run.progress.best_score, run.progress.best_step = best["score"], best["step"]
    if run.progress.best_score is not None and run.evaluators.best_metric is not None:
        run.tracker.show_best(run.evaluators.best_metric.format(run.progress.best_score))
    run.tracker.rewind(run.progress.step + 1 if checkpoint is not None else 0)
    if accelerator.is_main_process:
        folder.prune_checkpoints(run.progress.step, config.train.save_total_limit)
    if not run.progress.step:
        evaluate_untrained(run)


def _train(run: Run, steps: Iterator[list[Batch]], signals: StopSignals) -> None:
    """Take the optimiser steps that are left; report, evaluate and save at their intervals, or when signals say so.

    Raises:
        StoppedError: a signal has ended the run; a checkpoint has all steps.

    """
    config, progress, tracker = run.config.train, run.progress, run.tracker
    assert config.learning_rate is not None  # `setup.build` sets it
    peak_lr, warmup = config.learning_rate, number_of_steps(config.warmup_steps, run.total_steps)
    steps_per_epoch = run.data.train.steps_per_epoch
    save_every = math.ceil(run.total_steps / 10) if config.save_steps is None else config.save_steps
    meter = Meter(run.encoder, run.data.train, run.tracker, progress, run.recovery)
    tracker.start_progress(progress.step, run.total_steps)
    gradient_cache = run.gradient_cache
    gradient_cache.model.train()
    while progress.step < run.total_steps and not is_stopped_early(progress, config.patience):
        batches = next(steps)
        lr = peak_lr * lr_factor(progress.step, run.total_steps, warmup, config.scheduler)
        set_learning_rate(run.optimizer, lr)
        for batch in batches:
            meter.add(
                batch, gradient_cache.forward_backward(batch, 1 / len(batches), sync_gradients=batch is batches[-1])
            )
        grad_norm = clip_gradients(gradient_cache.model.parameters(), config.max_grad_norm or math.inf, run.accelerator)
        run.optimizer.step()
        run.optimizer.zero_grad()
        meter.add_step(grad_norm, overflowed=run.optimizer.step_was_skipped)
        progress.step += 1
        if not run.optimizer.step_was_skipped:
            progress.averaged = run.average.update(progress.step)
        progress.rows_read = batches[-1].rows_read
        tracker.advance()

        is_last_step = progress.step == run.total_steps
        evaluate_now = is_last_step or _is_due(
            progress.step, steps_per_epoch if config.eval_steps is None else config.eval_steps
        )
        if is_last_step or _is_due(progress.step, config.logging_steps):
            meter.report(lr)
        if evaluate_now:
            meter.pause()
            with run.average.applied():
                evaluate(run)
            meter.restart_clock()
        ends_early = is_stopped_early(progress, config.patience)
        if ends_early:
            meter.report(lr)
            cause = "the search" if progress.pruned else f"train.patience={config.patience}"
            tracker.info(labelled(f"step {progress.step} ", f"stopped early, as {cause} asks"))
        stop_now, save_now = signals.agree()
        if save_now or (save_every > 0 and (is_last_step or ends_early or _is_due(progress.step, save_every))):
            progress.unreported = meter.unreported()
            _checkpoint(run)
            meter.restart_clock()
        if stop_now:
            raise signals.stopped()
        if save_now:
            tracker.info(f"step {progress.step}  saved, as {SAVE} asked")
    tracker.stop_progress()


def _is_due(step: int, interval: int | None) -> bool:
    """Return whether something is due after a step; with an interval of None or 0 it never is."""
    return interval is not None and interval > 0 and step % interval == 0


def _checkpoint(run: Run) -> None:
    """Save everything needed to resume from here."""
    check_finite_weights(run.trainable, run.progress.step, run.recovery())
    state = collect_state(run.trainable, run.optimizer, run.average, run.accelerator)
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

    The same model embeds the sentences that its card shows. The best weights are loaded into the
    trained model, because the GPU may not have memory for a second one.
    """
    progress, folder = run.progress, run.folder
    check_equal_weights(run.trainable)
    run.save("final")
    run.optimizer.state.clear()  # AdamW's moments would occupy the memory that loading the best weights may need
    if progress.best_step not in (None, progress.step):
        load_saved_model(folder.path / "best", run.encoder, run.config.model)
    sync_buffers(run.trainable, run.accelerator)
    test_values = run.evaluators.run_test(run.encode)
    encode = partial(encode_distributed, run.trainable.encode_tokens, processes=run.accelerator)  # in full precision
    example = make_example(run.encoder.tokenizer, encode, run.encoder.embedding_config)
    result = Result(folder.path)
    if run.accelerator.is_main_process:
        record, best_metric = folder.record(), run.evaluators.best_metric
        scores: dict[str, Any] = {
            "best_metric": None if best_metric is None else best_metric.name,
            "best_score": progress.best_score,
            "best_step": progress.best_step,
            "steps": progress.step,
            "stopped_early": is_out_of_patience(progress, run.config.train.patience),
            "pruned": progress.pruned,
            "valid_before": progress.values_before,
            "valid_after": progress.last_values,
            "valid_word_overlap": record.get("valid_word_overlap"),
            "test_before": record.get("test_before"),
            "test_after": test_values.get(TEST_METRIC.name),
            "test_word_overlap": record.get("test_word_overlap"),
        }
        if test_values:
            run.tracker.log_metrics(progress.step, {f"test/{name}": value for name, value in test_values.items()})
        _track_result(run, scores)
        run.tracker.sync()
        folder.update(
            finished=True,
            result=scores,
            example=None if example is None else asdict(example),
            seconds=round(progress.seconds, 1),
            texts=progress.texts,
        )
        if progress.overflows:
            folder.update(overflows=progress.overflows)
        if run.config.data.train.sources and isinstance(run.data.train, InMemoryTrainingData):
            folder.update(rows_seen=run.data.train.rows_seen(progress.step))
        result = Result(folder.path, **scores)
    run.accelerator.wait_for_everyone()
    return result


def _track_result(run: Run, scores: Mapping[str, Any]) -> None:
    """Record what a dashboard shows of a run that has ended: its scores, some texts' neighbours, its model."""
    progress, folder = run.progress, run.folder.path
    best = (
        {} if progress.best_step is None else {scores["best_metric"]: scores["best_score"], "step": scores["best_step"]}
    )
    named = {"first": scores["valid_before"], "best": best, "last": scores["valid_after"]}
    named["test"] = {when: scores[f"test_{when}"] for when in ("before", "after")}
    run.tracker.log_summary({
        name: {key: value for key, value in values.items() if value is not None} for name, values in named.items()
    })  # fmt: skip
    with suppress(DataError):  # one that was damaged since is not worth the run
        sides = {f"{when} training": Predictions.load(folder, when) for when in (BEFORE, AFTER)}
        known = {name: side for name, side in sides.items() if side is not None}
        if known:
            run.tracker.log_table(progress.step, "nearest neighbours", *neighbours_table(known))
    run.tracker.log_model(folder / ("final" if progress.best_step is None else "best"))
