"""Launches the ranks of a run: forked from a server with all imports done, connected by gloo."""

import multiprocessing
import multiprocessing.connection
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path

PRELOAD = ["sharded", "swiftvideo_fast.train.engine", "deepspeed", "peft",
           "deepspeed.runtime.zero.muon.original_muon"]             # it imports torch's compiler: 4 s


def server() -> multiprocessing.context.BaseContext:
    """Returns the forkserver context; its children import from tests/ and use the CPU."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(path), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


class Processes:
    """`world` processes that run work(*args), with torchrun's environment variables."""

    def __init__(self, context, world: int, work: Callable, *args):
        port = free_port()
        self.processes = [context.Process(target=member, args=(rank, world, port, work, args))
                          for rank in range(world)]
        for process in self.processes:
            process.start()

    def kill(self, seconds: float, ranks) -> None:
        """Kills some ranks after `seconds`."""
        time.sleep(seconds)
        for rank in ranks:
            self.processes[rank].kill()

    def join(self, seconds: float | None = None, grace: float = 0) -> list[int]:
        """Returns exit codes.  When a rank fails, or after `seconds`, kills the others after `grace` seconds.
        (Launchers kill without grace.)"""
        pending = list(self.processes)
        while pending:
            ready = multiprocessing.connection.wait([p.sentinel for p in pending], seconds)
            ended = [p for p in pending if p.sentinel in ready]
            for p in ended:
                p.join()
            pending = [p for p in pending if p not in ended]
            if not ended or any(p.exitcode for p in ended):
                for p in pending:
                    p.join(grace)
                for p in pending:
                    p.kill()
        return [p.exitcode for p in self.processes]


def member(rank: int, world: int, port: int, work: Callable, args: tuple) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        work(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)             # DeepSpeed's destructors would wait for gloo's threads


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
