"""torch.distributed.checkpoint.async_save: a process writes, staged through shared memory.

A save that comes while the one before is still being written is put off until that is done. The
newest folder with a `.metadata` is whole: the file is written last.
"""

import os
import shutil

import torch.distributed as dist
from task import Training, arguments
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType


def kinds() -> dict:
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False,  # these three need a GPU
            use_async_staging=False,
            use_non_blocking_copy=False,
            use_shared_memory=True,
        )
    )
    return {"async_checkpointer_type": AsyncCheckpointerType.PROCESS, "async_stager": stager}


def whole(folder):
    return sorted(path.parent for path in folder.glob("step-*/.metadata"))


def loaded(training, path):
    """dcp.load fills what it is given: the optimizer's state is made by a step that changes
    nothing, as torch's own helper does it."""
    for group in training.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = parameter.new_zeros(parameter.shape)
    rates = [group["lr"] for group in training.optimizer.param_groups]
    for group in training.optimizer.param_groups:
        group["lr"] = 0.0
    training.optimizer.step()
    training.optimizer.zero_grad()
    for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    state = {**training.state(), "epoch_began": training.state()["generator"].clone()}
    dcp.load(state, checkpoint_id=path)
    training.restore(state)


def main() -> None:
    args = arguments()
    dist.init_process_group("gloo")
    training = Training(args)
    for path in reversed(whole(args.folder)):
        loaded(training, path)
        break
    options, saving, due = kinds(), None, False
    for step in training.steps():
        due = due or step % args.every == 0
        if due and (saving is None or saving.done()):
            if saving is not None:
                saving.result()
            for old in whole(args.folder)[:-1]:
                shutil.rmtree(old)
            path = args.folder / f"step-{step:08d}.{os.getpid()}"
            answer = dcp.async_save(training.state(), checkpoint_id=path, **options)
            saving, due = getattr(answer, "upload_completion", answer), False
    if saving is not None:
        saving.result()
    options["async_stager"].close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
