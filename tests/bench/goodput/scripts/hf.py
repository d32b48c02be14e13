"""transformers.Trainer with its own checkpoints and resume_from_checkpoint.

A checkpoint counts if its last file is there: a kill may leave a torn one, and the newest folder's
name says nothing.
"""

import torch
from task import arguments, ended, loss_of, model_of, nn, optimizer_of, told, windows_of
from transformers import Trainer, TrainerCallback, TrainingArguments

LAST_WRITTEN = "trainer_state.json"


TIED = "model.head.weight"


class Wrapped(nn.Module):
    """The model, with what the Trainer asks one whose weights are tied: safetensors refuses to
    write the second name."""

    _keys_to_ignore_on_save = (TIED,)

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.seen = None

    def forward(self, x, y, numbers):
        self.seen = numbers
        self.loss = loss_of(self.model, x, y)
        return {"loss": self.loss}

    def state_dict(self, *args, **options):
        tensors = super().state_dict(*args, **options)
        return {name: value for name, value in tensors.items() if name != TIED}

    def tie_weights(self):
        self.model.head.weight = self.model.characters.weight


class Telling(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **more):
        told(state.global_step, model.seen, model.loss.detach())


def collated(windows):
    x, y, numbers = zip(*windows, strict=True)
    return {"x": torch.stack(x), "y": torch.stack(y), "numbers": torch.tensor(numbers)}


def newest(folder):
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{LAST_WRITTEN}")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def main() -> None:
    args = arguments()
    model = Wrapped(model_of(args))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.folder / "hf"),
            per_device_train_batch_size=args.batch_size,
            max_steps=args.total,
            max_grad_norm=1.0,
            save_strategy="steps",
            save_steps=args.every,
            save_total_limit=2,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
            seed=args.seed,
        ),
        train_dataset=windows_of(args),
        data_collator=collated,
        optimizers=optimizer_of(model, args.total),
        callbacks=[Telling()],
    )
    path = newest(args.folder / "hf")
    trainer.train(resume_from_checkpoint=str(path) if path else None)
    ended(model)


main()
