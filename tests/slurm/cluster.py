"""A real Slurm on this host, for tests: slurmctld, one slurmd a node, munged; no systemd, cgroups or database.

    python tests/slurm/cluster.py start FOLDER             prints the line that points Slurm's commands at it
    python tests/slurm/cluster.py stop FOLDER

Needs root, and Debian's packages slurmctld, slurmd, slurm-client and munge. Everything of it lies in FOLDER, its
daemons are taken down by their pids. Nodes n0, n1, … are this host, each with 4 cores and 4 GPUs that are empty files;
names that /etc/hosts lacks are added there, since JAX finds its coordinator by the name of a node.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
CORES = GPUS = 4

CONFIG = """
ClusterName=mmdittest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A short life of credentials, or a job that is requeued at once waits two minutes for its old one to expire.
AuthInfo=socket={folder}/munge/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
# Several nodes on one host claim more cores than it has.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,default_queue_depth=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
MinJobAge=300
InactiveLimit=0
SlurmctldTimeout=10
SlurmdTimeout=10
MaxArraySize=10001
GresTypes=gpu
{nodes}
PartitionName=main Nodes=n[0-1] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30 PreemptMode=REQUEUE
# For what takes nodes away.
PartitionName=apart Nodes=n[2-3] Default=NO MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30 PreemptMode=REQUEUE
PartitionName=lower Nodes=n[4-5] Default=NO MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why there can't be one here; None if there can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else None


class Cluster:
    """The Slurm whose files lie in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes = folder, [f"n{number}" for number in range(6)]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Bring it up; returns when all nodes are idle."""
        for name in ("state", "log", "run", "munge", "dev", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for path in (self.folder, *self.folder.parents):  # munged is another user, who must get there
            with contextlib.suppress(PermissionError):
                path.chmod(path.stat().st_mode | 0o011)
        hosts = Path("/etc/hosts")
        known = {word for line in hosts.read_text().splitlines() for word in line.split("#")[0].split()[1:]}
        if lacking := [node for node in self.nodes if node not in known]:
            with hosts.open("a") as file:
                file.write(f"\n127.0.0.1 {' '.join(lacking)}\n")
        port, host = _free_ports(1 + len(self.nodes)), socket.gethostname().split(".")[0]
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 1 + number} CPUs={CORES} Boards=1 "
            f"SocketsPerBoard=1 CoresPerSocket={CORES} ThreadsPerCore=1 RealMemory=8000 Gres=gpu:h100:{GPUS} "
            "State=UNKNOWN"
            for number, node in enumerate(self.nodes)
        ]
        told = CONFIG.format(host=host, port=port, folder=self.folder, nodes="\n".join(lines))
        (self.folder / "slurm.conf").write_text(told)
        for gpu in range(GPUS):
            (self.folder / "dev" / f"nvidia{gpu}").touch()
        files = f"{self.folder}/dev/nvidia[0-{GPUS - 1}]"
        (self.folder / "gres.conf").write_text(
            "".join(f"NodeName={node} Name=gpu Type=h100 File={files}\n" for node in self.nodes)
        )
        self._start_munge()
        self._daemon("slurmctld", "-f", self.environment["SLURM_CONF"], "-c")
        for node in self.nodes:
            self.start_node(node)
        self.wait_until(lambda: self.idle() == len(self.nodes), 30, "nodes did not come up")

    def start_node(self, node: str) -> None:
        """Its daemon."""
        self._daemon("slurmd", "-f", self.environment["SLURM_CONF"], "-N", node)

    def kill_node(self, node: str) -> None:
        """Its daemon, as a host that dies would end it; what runs there goes on."""
        os.kill(int((self.folder / "run" / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)

    def stop(self) -> None:
        """Take all of it down: jobs, then daemons, by their pids."""
        with contextlib.suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):
            self.ask("scancel", "--user=root", "--signal=KILL", "--full")
            self.ask("scancel", "--user=root")
        time.sleep(1)
        for path in (*(self.folder / "run").glob("*.pid"), *(self.folder / "munge").glob("*.pid")):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def idle(self) -> int:
        """How many nodes are."""
        try:
            told = self.ask("sinfo", "--noheader", "--partition=high", "--states=idle", "--format=%D").split()
        except subprocess.CalledProcessError:
            return 0
        return sum(map(int, told))

    def wait_until(self, reached, seconds: float, what: str) -> None:
        """Or an error with the ends of the daemons' logs."""
        deadline = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > deadline:
                logs = [f"{path.name}: {path.read_text()[-800:]}" for path in sorted((self.folder / "log").glob("*"))]
                raise RuntimeError("\n".join([f"Slurm: {what} in {seconds:g} s", *logs]))
            time.sleep(0.1)

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        key = munge / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(1024))
        for path in (munge, key):
            shutil.chown(path, "munge", "munge")
        munge.chmod(0o755)
        key.chmod(0o400)
        files = {name: munge / f"munge.{name}" for name in ("socket", "log", "seed")}
        options = [f"--key-file={key}", f"--pid-file={munge / 'munged.pid'}", "--force"]
        options += [f"--{name if name == 'socket' else f'{name}-file'}={path}" for name, path in files.items()]
        self._daemon("runuser", "-u", "munge", "--", "/usr/sbin/munged", *options)

    def _daemon(self, *command: str) -> None:
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        # Daemons keep what they inherit; a pipe of ours would never end.
        subprocess.run(
            command,
            env={**os.environ, **self.environment, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=True,
        )


def _free_ports(count: int) -> int:
    """The first of so many in a row."""
    for first in range(17000, 30000, count):
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return first
    raise RuntimeError("no free ports")


if __name__ == "__main__":
    cluster = Cluster(Path(sys.argv[2]).absolute())
    if sys.argv[1] == "stop":
        cluster.stop()
    else:
        cluster.start()
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
