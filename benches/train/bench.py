"""A training step of S2C with all three losses against the same step in PyTorch f32, on one machine.

usage, from the repository root: bench.py OURS [--repetitions N] [--batch 8] [--side 256] [--threads N] [--device cuda]

OURS is a command line that speaks the protocol of reference.py; with the argument `bf16` it computes in that. The reference
is installed from PyPI into target/bench-sam/venv (once, some GB; the one of make bench-sam). ResNet-50 (v1), MobileSAM, one
batch drawn by a formula. The reference encodes every crop at every step, as the authors' code does; ours decodes with
embeddings made once, in f32 and in bf16. L_SSC is measured alone as well. Both sides get the same threads and take turns.

The last line is a JSON object: `step_f32`, `step_bf16`, `ssc`: reference / ours of the median seconds (above 1: ours is
faster); `ssc_memory`: ours / reference of how far memory rose in a fresh process (below 1: ours is smaller); `losses`: what
the first step gave, in which the sides agree but for roundings and, in CPM, the two ways to an embedding.
"""
import argparse
import json
import os
import pathlib
import shlex
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "common"))
from common import ROOT, Worker, enter_venv, reference  # noqa: E402

WEIGHTS = pathlib.Path("pipelines/weights")


def start_weights():
    """The backbone, and a head by formula."""
    import torch
    from safetensors.torch import load_file, save_file
    wave = lambda n, step, size: ((torch.arange(n, dtype=torch.float64) * step).sin() * size).float()  # noqa: E731
    head = {"head.feat.weight": wave(256 * 2048, 0.61, 0.02).view(256, 2048, 1, 1),
            "head.cam.weight": wave(20 * 256, 1.3, 0.1).view(20, 256, 1, 1)}
    path = ROOT / "train_start.safetensors"
    save_file(load_file(WEIGHTS / "resnet50_v1.f16.safetensors") | head, path)
    return str(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=256, help="of a crop, pixels")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="on cuda, memory is not compared")
    args = parser.parse_args()
    enter_venv()
    ours, size = shlex.split(args.ours), {"batch": args.batch, "side": args.side, "device": args.device}
    sides = {"reference": reference(HERE / "reference.py"), "f32": ours, "bf16": [*ours, "bf16"]}
    steps, alone = {side: [] for side in sides}, {"reference": [], "f32": []}

    workers = {side: Worker(command, args.threads) for side, command in sides.items()}
    load = {"start": start_weights(), "sam": str(WEIGHTS / "mobile_sam.f16.safetensors"), **size}
    losses = {}
    for side, worker in workers.items():
        worker("load", **load)
        losses[side] = {name: round(value, 4) for name, value in worker("step").items() if name != "seconds"}  # warms up
    for _ in range(args.repetitions):
        for side, worker in workers.items():
            steps[side].append(worker("step")["seconds"])
    for worker in workers.values():
        worker.close()

    rose = {side: [] for side in alone}
    for _ in range(args.repetitions):
        for side in alone:  # fresh, so that memory is this loss's own; the second time counts, when all is warm
            worker = Worker(sides[side], args.threads)
            rose[side].append(worker("ssc", **size)["grown_mib"])
            alone[side].append(worker("ssc", **size)["seconds"])
            worker.close()

    steps, alone = ({side: statistics.median(of) for side, of in by.items()} for by in (steps, alone))
    rose = {side: round(statistics.median(of)) for side, of in rose.items()}
    for side in sides:
        print(f"step {side:10}{steps[side]:8.2f} s{steps['reference'] / steps[side]:8.2f}   {losses[side]}")
    for side in alone:
        memory = f"   memory rose {rose[side]} MiB" if args.device == "cpu" else ""
        print(f"L_SSC {side:9}{alone[side]:8.3f} s{alone['reference'] / alone[side]:8.2f}{memory}")
    ratios = {f"step_{side}": round(steps["reference"] / steps[side], 3) for side in ("f32", "bf16")}
    ratios["ssc"] = round(alone["reference"] / alone["f32"], 3)
    if args.device == "cpu":
        ratios["ssc_memory"] = round(rose["f32"] / max(rose["reference"], 1), 3)
    seconds = {f"step_{side}": round(value, 4) for side, value in steps.items()}
    seconds |= {f"ssc_{side}": round(value, 4) for side, value in alone.items()}
    print(json.dumps(ratios | {"seconds": seconds, "ssc_rose_mib": rose, "losses": losses, "threads": args.threads,
                               "repetitions": args.repetitions, **size}))


if __name__ == "__main__":
    main()
