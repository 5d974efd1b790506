"""Speed and memory of our SAM against the public PyTorch code, on this machine's CPU.

usage, from the repository root: bench.py OURS [--repetitions N] [--images DIR] [--mobile-sam WEIGHTS]
       [--points-per-side N] [--threads N]

OURS is a command line that speaks the protocol of reference.py. The reference is installed from PyPI into
target/bench-sam/venv (once, some GB). ViT-B has random weights, which take as long as trained ones; MobileSAM has its own,
and does the decoding, segment-everything (32 points a side) and the peak memory (fresh workers, one run). Each
repetition takes the next picture of --images; by default two are drawn by a formula. Both sides get the same threads.

The last line is a JSON object: reference / ours of the median seconds (above 1: ours is faster), `peak_memory` ours /
reference (below 1: ours is smaller), and what they come from.
"""
import argparse
import itertools
import json
import os
import pathlib
import shlex
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "common"))
from common import ROOT, Worker, enter_venv, reference  # noqa: E402


def draw_pictures():
    """A dozen ellipses over a slope, under noise: 500 x 375."""
    import numpy as np
    from PIL import Image, ImageDraw
    for seed in range(2):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:375, :500]
        ground = np.stack([x / 4 + 60, y / 3 + 50, (x + y) / 8 + 70], -1).astype(np.uint8)
        image = Image.fromarray(ground)
        for _ in range(12):
            (cx, cy), (rx, ry) = rng.uniform([0, 0], [500, 375]), rng.uniform(15, 90, 2)
            colour = tuple(int(c) for c in rng.integers(0, 256, 3))
            ImageDraw.Draw(image).ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=colour)
        noisy = np.asarray(image) + rng.normal(0, 8, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(ROOT / f"drawn-{seed}.png")
        yield ROOT / f"drawn-{seed}.png"


def random_vit_b():
    path = ROOT / "vit_b.pth"
    if not path.exists():
        import torch
        from segment_anything import sam_model_registry
        torch.manual_seed(0)
        torch.save(sam_model_registry["vit_b"]().state_dict(), path)
    return str(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--images", type=pathlib.Path)
    parser.add_argument("--mobile-sam", default="pipelines/weights/mobile_sam.f16.safetensors")
    parser.add_argument("--points-per-side", type=int, default=32, help="less for a trial")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    enter_venv()
    found = draw_pictures() if args.images is None else sorted(args.images.iterdir())
    images = [str(path) for path in found if path.suffix in (".jpg", ".jpeg", ".png")]
    if not images:
        sys.exit(f"error: no .jpg or .png in {args.images}")
    sides = {"ours": shlex.split(args.ours), "reference": reference(HERE / "reference.py")}
    start = lambda: {side: Worker(command, args.threads) for side, command in sides.items()}  # noqa: E731
    names = ["encoder_vit_b", "encoder_vit_t", "decoder_64", "everything"]
    seconds = {name: {side: [] for side in sides} for name in names}
    masks = {side: [] for side in sides}

    def both(name, do, **what):
        """Asks one side, then the other; a run without a name warms up."""
        for side, worker in workers.items():
            answer = worker(do, **what)
            if name:
                seconds[name][side].append(answer["seconds"])
            if "masks" in answer:
                masks[side].append(answer["masks"])

    workers = start()
    for model, weights in [("vit_b", random_vit_b()), ("vit_t", args.mobile_sam)]:
        both(None, "load", model=model, weights=weights)
        both(None, "encode", image=images[0])
        for image, _ in zip(itertools.cycle(images), range(args.repetitions)):
            both(f"encoder_{model}", "encode", image=image)
            if model == "vit_t":
                both("decoder_64", "decode", prompts=64)
                both("everything", "everything", image=image, points_per_side=args.points_per_side)
    for worker in workers.values():
        worker.close()
    peak = {}
    for side, command in sides.items():  # one after the other: each has the machine's memory to itself
        worker = Worker(command, args.threads)
        worker("load", model="vit_t", weights=args.mobile_sam)
        worker("everything", image=images[0], points_per_side=args.points_per_side)
        peak[side] = round(worker("peak")["peak_mib"])
        worker.close()

    seconds = {name: {side: statistics.median(of) for side, of in by.items()} for name, by in seconds.items()}
    print(f"{'':16}{'ours':>10}{'reference':>12}{'ratio':>8}")
    for name, by in seconds.items():
        print(f"{name:16}{by['ours']:8.2f} s{by['reference']:10.2f} s{by['reference'] / by['ours']:8.2f}")
    print(f"{'peak memory':16}{peak['ours']:6} MiB{peak['reference']:8} MiB{peak['ours'] / peak['reference']:8.2f}")
    print(f"{'masks':16}{statistics.median(masks['ours']):10g}{statistics.median(masks['reference']):12g}")
    ratios = {name: round(by["reference"] / by["ours"], 3) for name, by in seconds.items()}
    ratios["peak_memory"] = round(peak["ours"] / peak["reference"], 3)
    seconds = {name: {side: round(value, 4) for side, value in by.items()} for name, by in seconds.items()}
    print(json.dumps(ratios | {"seconds": seconds, "peak_mib": peak, "masks": masks, "threads": args.threads,
                               "repetitions": args.repetitions}))


if __name__ == "__main__":
    main()
