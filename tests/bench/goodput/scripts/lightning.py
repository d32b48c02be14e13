"""pytorch_lightning.Trainer with ModelCheckpoint and ckpt_path, a loader that knows its place
(torchdata) and a callback for the generator, without which a resume is another run.
"""

import logging

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from task import arguments, ended, loss_of, model_of, optimizer_of, told, windows_of
from torchdata.stateful_dataloader import StatefulDataLoader

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Wrapped(pl.LightningModule):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.model = model_of(args)

    def training_step(self, batch, index):
        x, y, self.numbers = batch
        return loss_of(self.model, x, y)

    def configure_optimizers(self):
        optimizer, scheduler = optimizer_of(self.model, self.args.total)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Generator(Callback):
    """The state of torch's generator, put back where an epoch begins, before the loader draws its
    order, and within one before the next step, behind what the loader drew to find its place."""

    saved = None

    def state_dict(self):
        return {"generator": torch.get_rng_state()}

    def load_state_dict(self, state):
        self.saved = state["generator"]

    def on_train_epoch_start(self, trainer, module):
        if self.saved is not None:
            torch.set_rng_state(self.saved)

    def on_train_batch_start(self, trainer, module, batch, index):
        if self.saved is not None and index:
            torch.set_rng_state(self.saved)
        self.saved = None


class Telling(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        told(trainer.global_step, module.numbers, outputs["loss"].detach())


def main() -> None:
    args = arguments()
    module = Wrapped(args)
    folder = args.folder / "lightning"
    kept = ModelCheckpoint(
        dirpath=folder,
        filename="{step}",
        every_n_train_steps=args.every,
        save_top_k=1,
        save_last="link",
        monitor="step",
        mode="max",
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=args.total,
        gradient_clip_val=1.0,
        callbacks=[Telling(), Generator(), kept],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=args.folder,
    )
    loader = StatefulDataLoader(windows_of(args), args.batch_size, shuffle=True)
    last = folder / "last.ckpt"
    trainer.fit(module, loader, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    ended(module.model)


main()
