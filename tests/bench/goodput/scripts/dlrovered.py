"""Under dlrover-run: flash checkpoint to its agent's shared memory every N steps, from which a
restarted process loads. What it loads lies in that memory still: an optimizer that is given it
would change the saved state with each step.
"""

import copy

import torch.distributed as dist
from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer, StorageType
from task import Training, arguments

args = arguments()
dist.init_process_group("gloo")
training = Training(args)
checkpointer = DdpCheckpointer(str(args.folder / "flash"))
state = checkpointer.load_checkpoint()
if state:
    training.restore(copy.deepcopy(state))
for step in training.steps():
    if step % args.every == 0:
        checkpointer.save_checkpoint(step, training.state(), storage_type=StorageType.MEMORY)
dist.destroy_process_group()
