"""The one training loop: `transformers.Trainer` over an objective, guarded, resumable, with named terms in its log."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from typing_extensions import override

from ted import checkpoints
from ted.checkpoints import CheckpointStore
from ted.config import TrainingSettings
from ted.data.preparation import Batch, Collator
from ted.errors import ModelError, NonFiniteError
from ted.methods import Counts
from ted.objectives import Objective

LOGGED_POINTS = 40


@dataclass(frozen=True)
class TrainingRun:
    """A training to be done: its name in messages, its settings, its seed, and where its checkpoints live."""

    name: str
    settings: TrainingSettings
    seed: int
    checkpoints: Path
    group_by_length: bool = True
    store: CheckpointStore | None = None


class EpochLengthSampler(LengthGroupedSampler):
    """Length-grouped order that depends on seed and epoch alone, so that a resumed run sees the rows it would have."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Make the order of an epoch the next one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + 1_000_003 * self.epoch)
        lengths, size = self.lengths, self.batch_size
        return iter(get_length_grouped_indices(lengths, size, generator=self.generator))  # type: ignore[no-untyped-call]


class NamedProgress(ProgressCallback):
    """Progress bar with the stage's name, loss and remaining time; log entries go to the record, not the screen."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.training_bar: Any = None
        self.name = name

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        if self.training_bar is not None:
            self.training_bar.set_description(self.name)
            self.training_bar.mininterval = 2.0

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3g}", refresh=False)


class ObjectiveTrainer(Trainer):
    """`transformers.Trainer` for an objective.

    Losses are divided by what the whole batch of an update holds, so that accumulation changes nothing; a checkpoint
    counts only once it is complete.
    """

    def __init__(self, run: TrainingRun, objective: Objective, rows: Dataset, collate: Collator) -> None:
        self.run: TrainingRun = run
        self.objective: Objective = objective
        self.rows: Dataset = rows
        self._sums: dict[str, Tensor] = {}
        self._num_logged = 0
        super().__init__(
            model=objective,
            args=_arguments(run, len(rows)),
            train_dataset=rows,
            data_collator=collate,
        )
        num_devices = max(self.args.n_gpu, self.args.world_size)
        if num_devices > 1:
            raise ModelError(
                f"{run.name}: there are {num_devices} devices or processes, but losses are counted for one only; "
                "make a single device visible, for example with CUDA_VISIBLE_DEVICES=0"
            )
        self.model_accepts_loss_kwargs = True
        self.remove_callback(ProgressCallback)
        self.add_callback(NamedProgress(run.name))

    @override
    def get_batch_samples(  # type: ignore[override]
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Counts]:
        """Return the micro-batches of one update and what they hold together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, self.objective.count(batches)

    @override
    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Counts | None = None,
    ) -> Tensor:
        """Return the loss of a micro-batch.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        assert num_items_in_batch is not None
        assert not return_outputs
        values: dict[str, Tensor] = model(inputs, num_items_in_batch)
        loss = values.pop("loss")
        if not torch.isfinite(loss):
            raise NonFiniteError(_not_finite("loss", self.run.name, self.state.global_step + 1))
        if not self._sums:
            self._num_logged = self.state.global_step
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(loss)) + value.detach()
        return loss

    @override
    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        """Return the norm before clipping, which would turn finite entries of an infinite norm into zeros in silence.

        Raises:
            NonFiniteError: the norm is not finite; the update has not been made.
        """
        norm: Tensor = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if not torch.isfinite(norm):
            raise NonFiniteError(_not_finite("gradient", self.run.name, self.state.global_step + 1))
        return norm

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every term since the last entry."""
        steps = self.state.global_step - self._num_logged
        if "loss" in logs and steps > 0:
            logs |= {name: value.item() / steps for name, value in self._sums.items()}
            self._sums.clear()
        super().log(logs, start_time)

    @override
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW with a parameter group per learning-rate multiplier."""
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer_class(self._parameter_groups(), **options)
        return self.optimizer

    def _parameter_groups(self) -> list[dict[str, Any]]:
        decayed = set(self.get_decay_parameter_names(self.objective))
        scales = self.objective.parameter_scales()
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.objective.named_parameters():
            if parameter.requires_grad:
                scale = next((value for prefix, value in scales.items() if name.startswith(prefix)), 1.0)
                decay = self.args.weight_decay if name in decayed else 0.0
                groups.setdefault((scale, decay), []).append(parameter)
        return [
            {"params": parameters, "lr": self.args.learning_rate * scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ]

    @override
    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler[int]:
        lengths = list(self.rows["length"])
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        if not self.run.group_by_length:
            # Rows of equal length form one group: a plain shuffle.
            lengths = [1] * len(lengths)
        return EpochLengthSampler(size, lengths, self.run.seed)

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the weights as safetensors, without the pickled arguments that the base class adds."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.objective, str(folder / "model.safetensors"))

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        checkpoint = self.run.checkpoints / f"{checkpoints.PREFIX}{self.state.global_step}"
        checkpoints.complete(checkpoint)
        if self.run.store is not None:
            self.run.store.put(checkpoint)

    def go_on(self, checkpoint: Path) -> None:
        """Train on from a checkpoint; only load it if the run was done: the base class would make one more update."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            self.train(resume_from_checkpoint=str(checkpoint))
            return
        self._load_from_checkpoint(str(checkpoint))
        self.state = state

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_model(self.objective, str(Path(resume_from_checkpoint) / "model.safetensors"))


def train(run: TrainingRun, objective: Objective, rows: Dataset, collate: Collator) -> dict[str, Any]:
    """Train an objective in place, going on from the last complete checkpoint of the run if there is one.

    Args:
        run: what to call it, its settings and where its checkpoints are.
        objective: what to minimise.
        rows: tokenised rows with `label`, `length` and `index`.
        collate: makes a batch of rows.

    Returns:
        `log_history` (the trainer's, with every term), `steps`, `seconds` of this process, `resumed_from` (step).

    Raises:
        ModelError: the model cannot compute its layers again for the gradient, and the settings ask for it.
        NonFiniteError: a loss or gradient is not finite; parameters are as they were before that update.
    """
    set_seed(run.seed)
    started = time.monotonic()
    if run.settings.gradient_checkpointing:
        _checkpoint_activations(objective)
    trainer = ObjectiveTrainer(run, objective, rows, collate)
    if run.store is not None:
        run.store.fetch(run.checkpoints)
    checkpoint = checkpoints.newest(run.checkpoints)
    if checkpoint is None:
        trainer.train()
    else:
        trainer.go_on(checkpoint)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "log_history": history,
        "steps": trainer.state.global_step,
        "seconds": time.monotonic() - started,
        "resumed_from": checkpoints.step_of(checkpoint) if checkpoint else 0,
    }


def _checkpoint_activations(objective: Objective) -> None:
    """Let the models of an objective compute their layers again for the gradient; the trainer would look in itself."""
    for model in objective.children():
        if isinstance(model, PreTrainedModel):
            try:
                model.activation_checkpointing_enable({"use_reentrant": False})
            except ValueError as error:
                raise ModelError(f"{error} Set gradient_checkpointing to false for this model") from error


def _arguments(run: TrainingRun, num_rows: int) -> TrainingArguments:
    settings = run.settings
    per_update = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    steps = settings.max_steps or math.ceil(num_rows / per_update) * settings.num_train_epochs
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type=settings.lr_scheduler_type,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.bf16,
        seed=run.seed,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,
        logging_steps=max(1, int(steps / LOGGED_POINTS)),
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _not_finite(what: str, name: str, step: int) -> str:
    return (
        f"{name}: the {what} at step {step} is not finite; the parameters are as they were before that update. "
        "Lower the learning rate, clip the gradient (max_grad_norm) or look for broken rows"
    )
