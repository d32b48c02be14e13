"""dlrover's own master for one node, and dlrover-run with it.

`dlrover-run --standalone` would start the master itself, but not with a torch as new as this one:
its call of SubprocessHandler lacks an argument.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
local = ["--platform", "local", "--node_num", "1", "--job_name", "race", "--port", str(port)]
master = subprocess.Popen([sys.executable, "-m", "dlrover.python.master.main", *local])
launcher = [str(Path(sys.executable).with_name("dlrover-run")), "--nnodes", "1"]
launcher += ["--nproc_per_node", "1", *sys.argv[1:]]
environ = {**os.environ, "DLROVER_MASTER_ADDR": f"127.0.0.1:{port}"}
try:
    code = subprocess.call(launcher, env=environ)
finally:
    master.terminate()
raise SystemExit(code)
