"""The engine against ninja, doit, DVC, Snakemake, redun and b3sum, on this machine.

usage, from the repository root: bench.py OURS [--repetitions N] [--cases A,B] [--peers A,B]

OURS is the program of ours.rs. The peers are installed from PyPI, each into a venv of its own in target/bench-engine; b3sum
by `cargo install`. One that cannot be installed is left out, and the output says so. All do the same: each input file goes
through a chain of four units that copy it; theirs are `cp`, or a copy in Python where the tool runs Python functions. Each
measurement is a process, from start to end; the sides take turns; medians. Beside the seconds from start to end stand those
of processors, of the program and all it starts: on a machine that does other work at the same time they alone tell.

noop_1k, noop_10k, noop_1m: nothing has changed. cold_1k: nothing is there. edit_100k: one input has changed, of 25,000.
files: 2 GB in 5,000 files are hashed, for the first time and again. The last line is a JSON object: seconds by case and side,
`ratios` = fastest peer / ours (above 1: ours is faster), `limits`: ours against what it is to stay below; `cpu_seconds` and
`cpu_ratios` are the same of processor time.
"""
import argparse
import json
import os
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import venv

ROOT = pathlib.Path("target/bench-engine").absolute()
PEERS = {"ninja": "ninja==1.13.2", "doit": "doit==0.37.0", "dvc": "dvc==3.67.1", "snakemake": "snakemake==9.27.1",
         "redun": "redun==0.44.1"}
CHAIN = 4


def install(peer):
    """The folder of a peer's programs; None with a message if it cannot be had."""
    home = ROOT / "peers" / peer
    done = home / "complete"
    if not done.exists():
        print(f"installing {peer}", flush=True)
        if peer == "b3sum":
            command = ["cargo", "install", "-q", "b3sum", "--locked", "--root", home]
        else:
            venv.create(home, clear=True, with_pip=True)
            command = [home / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", PEERS[peer]]
        if subprocess.run(command).returncode:
            print(f"{peer} is left out: it could not be installed", flush=True)
            return None
        done.touch()
    return home / "bin"


def inputs(folder, n, size=0):
    """A fresh folder with input files whose times have settled. Big ones differ in each kilobyte."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    filler = os.urandom(size)
    for i in range(n):
        (folder / f"in/{i:06}.txt").write_bytes(f"file {i}\n".encode() + filler)
    time.sleep(2.5)


def names(folder):
    return sorted(path.stem for path in (folder / "in").iterdir())


def ninja(folder, programs):
    lines = ["rule copy", "  command = cp $in $out"]
    for name in names(folder):
        steps = [f"in/{name}.txt", *(f"out/{name}.{letter}" for letter in "abcd"[:CHAIN])]
        lines += [f"build {to}: copy {source}" for source, to in zip(steps, steps[1:])]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    return [programs / "ninja", "--quiet"], ["out", ".ninja_log", ".ninja_deps"]


def doit(folder, programs):
    (folder / "dodo.py").write_text(textwrap.dedent(f"""\
        import pathlib, shutil
        DOIT_CONFIG = {{"verbosity": 0, "reporter": "zero"}}
        pathlib.Path("out").mkdir(exist_ok=True)
        def task_copy():
            for name in sorted(path.stem for path in pathlib.Path("in").iterdir()):
                steps = [f"in/{{name}}.txt", *(f"out/{{name}}.{{letter}}" for letter in "abcd"[:{CHAIN}])]
                for source, to in zip(steps, steps[1:]):
                    yield {{"name": to, "actions": [(shutil.copyfile, (source, to))], "file_dep": [source], "targets": [to]}}
        """))
    return [programs / "doit"], ["out", ".doit.db", ".doit.db.db", ".doit.db.dat", ".doit.db.dir", ".doit.db.bak"]


def dvc(folder, programs):
    subprocess.run([programs / "dvc", "init", "--no-scm", "-q", "-f"], cwd=folder, check=True)
    subprocess.run([programs / "dvc", "config", "core.analytics", "false"], cwd=folder, check=True)
    stages = {}
    for name in names(folder):
        steps = [f"in/{name}.txt", *(f"out/{name}.{letter}" for letter in "abcd"[:CHAIN])]
        for source, to in zip(steps, steps[1:]):
            stages[to.replace("/", "-").replace(".", "-")] = {"cmd": f"mkdir -p out && cp {source} {to}", "deps": [source],
                                                             "outs": [to]}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    return [programs / "dvc", "repro", "-q"], ["out", "dvc.lock", ".dvc/cache", ".dvc/tmp"]


def snakemake(folder, programs):
    rules = ["import pathlib", "NAMES = sorted(path.stem for path in pathlib.Path('in').iterdir())",
             "rule all:", "    input: expand('out/{name}.d', name=NAMES)"]
    for letter, before in zip("abcd", ["in/{name}.txt", "out/{name}.a", "out/{name}.b", "out/{name}.c"]):
        rules += [f"rule {letter}:", f"    input: '{before}'", f"    output: 'out/{{name}}.{letter}'",
                  "    shell: 'cp {input} {output}'"]
    (folder / "Snakefile").write_text("\n".join(rules) + "\n")
    return [programs / "snakemake", "--cores", str(os.cpu_count()), "--quiet", "all"], ["out", ".snakemake"]


def redun(folder, programs):
    (folder / "workflow.py").write_text(textwrap.dedent("""\
        import pathlib, shutil
        from redun import File, task
        redun_namespace = "bench"
        @task()
        def copy(source, to):
            pathlib.Path("out").mkdir(exist_ok=True)
            shutil.copyfile(source.path, to)
            return File(to)
        @task()
        def main():
            ends = []
            for path in sorted(pathlib.Path("in").iterdir()):
                file = File(str(path))
                for letter in "abcd":
                    file = copy(file, f"out/{path.stem}.{letter}")
                ends.append(file)
            return ends
        """))
    return [programs / "redun", "run", "workflow.py", "main"], ["out", ".redun"]


def seconds(command, folder):
    """Seconds from start to end and of processors, and what it said."""
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        taken = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode:
            sys.exit(f"error: {shlex.join(map(str, command))}: {said.read()[-2000:]}")
        return (taken, used.ru_utime + used.ru_stime), said.read()


class Ours:
    """Our program in a folder."""

    def __init__(self, program, folder, *variants):
        self.folder, self.command = folder, [*program, "run", ".", *map(str, variants or (1,))]

    def run(self, executed=None):
        taken, said = seconds(self.command, self.folder)
        answer = json.loads(said.splitlines()[-1])
        if executed is not None and answer["result"]["executed"] != executed:
            sys.exit(f"error: ours executed {answer['result']['executed']} units, not {executed}")
        return taken, answer["peak_mib"]


def medians(by_side):
    """By side, of seconds and of processor seconds."""
    return {side: [round(statistics.median(column), 4) for column in zip(*of)] for side, of in by_side.items()}


def against(ours, peers, n_units, repetitions, what):
    """The seconds of each side for `what`, cold or noop."""
    folder = ROOT / f"work-{n_units}"
    inputs(folder, n_units // CHAIN)
    sides = {"ours": Ours(ours, folder)}
    taken = {"ours": []}
    commands = {peer: globals()[peer](folder, programs) for peer, programs in peers.items()}
    taken |= {peer: [] for peer in commands}
    for _ in range(repetitions):
        for side, of in taken.items():
            command, made = commands.get(side, (None, []))
            if what == "cold":
                [remove(folder / name) for name in (made or ["cache"])]
            if side == "ours":
                if what == "noop":
                    sides["ours"].run()
                of.append(sides["ours"].run(n_units if what == "cold" else 0)[0])
            else:
                if what == "noop" and not of:
                    seconds(command, folder)
                of.append(seconds(command, folder)[0])
    shutil.rmtree(folder)
    return medians(taken)


def remove(path):
    """Moved away: for seconds after many files are deleted ext4 is slow to make new ones, the next side's."""
    if path.exists():
        trash = pathlib.Path(tempfile.mkdtemp(dir=ROOT, prefix="trash-"))
        path.rename(trash / path.name)


def noop_1m(ours, repetitions):
    folder = ROOT / "work-1m"
    inputs(folder, 10_000)
    side = Ours(ours, folder, 25, "sets")
    side.run(1_000_025)
    runs = [side.run(0) for _ in range(repetitions)]
    shutil.rmtree(folder)
    return medians({"ours": [taken for taken, _ in runs]}), round(max(peak for _, peak in runs))


def edit_100k(ours, repetitions):
    folder = ROOT / "work-100k"
    inputs(folder, 25_000)
    side = Ours(ours, folder)
    side.run(100_000)
    side.run(0)
    taken = []
    for i in range(repetitions):
        (folder / "in/000007.txt").write_text(f"changed {i}\n")
        taken.append(side.run(CHAIN)[0])
    shutil.rmtree(folder)
    return medians({"ours": taken})


def files(ours, b3sum, repetitions):
    folder = ROOT / "work-files"
    inputs(folder, 5_000, 400_000)
    paths = [f"in/{name}.txt" for name in names(folder)]
    taken = {"first": [], "second": []} | ({"b3sum": []} if b3sum else {})
    if b3sum:
        seconds([b3sum / "b3sum", *paths], folder)
    for _ in range(repetitions):
        remove(folder / "cache")
        for side in ("first", "second"):
            taken[side].append(seconds([*ours, "hash", "."], folder)[0])
        if b3sum:
            taken["b3sum"].append(seconds([b3sum / "b3sum", *paths], folder)[0])
    shutil.rmtree(folder)
    return medians(taken)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--cases", default="noop_1k,cold_1k,noop_10k,noop_1m,edit_100k,files")
    parser.add_argument("--peers", default=",".join([*PEERS, "b3sum"]))
    args = parser.parse_args()
    ours, cases, wanted = shlex.split(args.ours), args.cases.split(","), args.peers.split(",")
    ours[0] = shutil.which(ours[0]) or str(pathlib.Path(ours[0]).absolute())
    ROOT.mkdir(parents=True, exist_ok=True)
    found = {peer: install(peer) for peer in wanted}
    b3sum = found.pop("b3sum", None)
    peers = {peer: programs for peer, programs in found.items() if programs}
    fast = {peer: programs for peer, programs in peers.items() if peer in ("ninja", "doit")}

    taken, peak = {}, None
    for case in cases:
        match case:
            case "noop_1k" | "cold_1k":
                taken[case] = against(ours, peers, 1_000, args.repetitions, case.split("_")[0])
            case "noop_10k":
                taken[case] = against(ours, fast, 10_000, args.repetitions, "noop")
            case "noop_1m":
                taken[case], peak = noop_1m(ours, args.repetitions)
            case "edit_100k":
                taken[case] = edit_100k(ours, args.repetitions)
            case "files":
                taken[case] = files(ours, b3sum, args.repetitions)
        told = (f"{side} {wall:.3f} s ({cpu:.3f})" for side, (wall, cpu) in taken[case].items())
        print(f"{case:10}", "  ".join(told), flush=True)
        for trash in ROOT.glob("trash-*"):
            shutil.rmtree(trash)
    numbers = {"": 0, "cpu_": 1}
    answer = {"limits": {"noop_1m_peak_mib": [peak, 1024]} if peak else {}}
    for prefix, column in numbers.items():
        of = {case: {side: pair[column] for side, pair in sides.items()} for case, sides in taken.items()}
        ratios = {}
        for case, sides in of.items():
            rivals = [value for side, value in sides.items() if side not in ("ours", "first", "second")]
            if rivals:
                ratios[case] = round(min(rivals) / sides.get("ours", sides.get("first")), 3)
        answer |= {f"{prefix}seconds": of, f"{prefix}ratios": ratios}
        for case, side, limit in [("noop_1m", "ours", 2.0), ("edit_100k", "ours", 0.2), ("files", "second", 0.05)]:
            if case in of:
                answer["limits"][f"{prefix}{case}_{side}_seconds"] = [of[case][side], limit]
    left_out = [peer for peer in wanted if not found.get(peer) and not (peer == "b3sum" and b3sum)]
    print(json.dumps(answer | {"left_out": left_out, "cores": len(os.sched_getaffinity(0)),
                               "repetitions": args.repetitions}))


if __name__ == "__main__":
    main()
