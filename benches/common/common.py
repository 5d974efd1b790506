"""What the benchmarks share: the venv of the reference, workers, and the protocol between them: one JSON object a line
asks for a method (`do`) with its arguments, one answers; what fails is answered by {"error": MESSAGE}. Every worker knows
{"do": "peak"} -> {"peak_mib"}: VmHWM, Linux alone."""
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
import venv

PINNED = ["torch==2.13.0", "torchvision==0.28.0", "timm==1.0.31", "numpy==2.4.6", "pillow==13.0.0",
          "safetensors==0.8.0", "segment-anything==1.0", "mobilesam-mirror==1.0.0"]
ROOT = pathlib.Path("target/bench-sam")


def enter_venv(home=ROOT / "venv", pinned=PINNED):
    """Goes on in the venv's Python, made if it is not there."""
    done = home / "complete"
    if not done.exists() or done.read_text().split() != pinned:
        print("installing the reference from PyPI", flush=True)
        venv.create(home, clear=True, with_pip=True)
        if subprocess.run([home / "bin/python", "-m", "pip", "install", "-q", *pinned]).returncode:
            sys.exit("error: the reference could not be installed\nhint: needs PyPI and Python 3.11 or newer")
        done.write_text("\n".join(pinned))
    if pathlib.Path(sys.prefix).resolve() != home.resolve():
        python = str(home.absolute() / "bin/python")
        os.execv(python, [python, *sys.argv])


class Worker:
    """A process that answers."""

    def __init__(self, command, threads):
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        self.command, pipe = command, subprocess.PIPE
        self.process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)

    def __call__(self, do, **what):
        try:
            print(json.dumps({"do": do, **what}), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline() or '{"error": "ended"}')
        except BrokenPipeError:
            answer = {"error": "ended"}
        if "error" in answer:
            sys.exit(f"error: {shlex.join(self.command)}: {do}: {answer['error']}")
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def reference(script):
    """The command of a worker in this Python."""
    return [sys.executable, "-W", "ignore", str(script)]


def serve(make):
    """Answers on stdout what is asked on stdin, by the methods of `make()`."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the libraries print is no answer
    worker = make()
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            do = asked.pop("do")
            answer = {"peak_mib": memory("VmHWM")} if do == "peak" else getattr(worker, do)(**asked)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def memory(field):
    """MiB of this process, Linux alone."""
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith(field))) / 1024


def timed(run):
    started = time.perf_counter()
    result = run()
    return {"seconds": time.perf_counter() - started}, result
