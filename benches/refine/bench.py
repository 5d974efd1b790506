"""The dense CRF against pydensecrf, and the sweep of seed thresholds against the authors' scheme in numpy, on this
machine's CPU.

usage, from the repository root: bench.py OURS [--repetitions N] [--images N] [--jobs N] [--height H] [--width W]

OURS is a command line that speaks the protocol of reference.py. The reference is installed from PyPI into
target/bench-refine/venv (once; pydensecrf2 is compiled there). Pictures, scores and masks are drawn by a formula. The CRF
is measured with 3 labels and PSA's parameters, and with 21 and DeepLab's, one image after another on one core, and ours
with a job a core. The sweep has 50 thresholds on one core: the authors' code makes a label map at each and counts it,
ours counts once for all. The sides take turns.

The last line is a JSON object: `crf_psa`, `crf_deeplab`, `sweep`: reference / ours of the median seconds (above 1: ours is
faster); `crf_scaling`: ours with one job / with `jobs`; `difference`: of marginals at most; `miou_difference`.
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
from common import Worker, enter_venv, reference  # noqa: E402

ROOT = pathlib.Path("target/bench-refine")
PINNED = ["numpy==2.4.6", "pydensecrf2==1.1"]
CRFS = {"psa": (3, [10, 3, 3, 80, 13, 10]), "deeplab": (21, [10, 1, 3, 67, 3, 4])}


def draw(i, height, width):
    """Writes picture i and what belongs to it: things with soft borders on slopes, and grain as in a photograph."""
    import numpy as np
    random = np.random.default_rng(i)
    y, x = np.mgrid[:height, :width] / max(height, width)
    inside = np.zeros((height, width))
    image = np.stack([60 + 90 * (x * a + y * b) for a, b in random.uniform(0.2, 1, (3, 2))], -1)
    mask = np.zeros((height, width), np.uint8)
    for label in (1, 2):
        at, size = random.uniform(0.2, 0.7, 2), random.uniform(0.1, 0.25)
        far = np.hypot(y - at[0], (x - at[1]) * random.uniform(0.6, 1.4))
        here = 1 / (1 + np.exp((far - size) * 150))
        image += here[..., None] * random.uniform(-90, 90, 3)
        mask[far < size] = label
        inside = np.maximum(inside, here)
    image += random.normal(0, 6, image.shape) + 12 * np.sin(40 * x + 9 * np.sin(25 * y))[..., None]
    np.clip(image, 0, 255).astype(np.uint8).tofile(ROOT / f"{i}.rgb")
    mask[::37] = 255
    mask.tofile(ROOT / f"{i}.mask")

    # As of a feature map of stride 16: noise and things in blocks, between which it is interpolated.
    def smooth(of):
        rows, columns = np.linspace(0, of.shape[0] - 1, height), np.linspace(0, of.shape[1] - 1, width)
        along = np.stack([np.interp(columns, np.arange(of.shape[1]), row) for row in of])
        return np.stack([np.interp(rows, np.arange(of.shape[0]), column) for column in along.T], 1)

    grid = lambda: random.normal(0, 1, (height // 16, width // 16))  # noqa: E731
    cams = np.clip(np.stack([smooth(inside[8::16, 8::16] * 0.8 + 0.1 * grid()) for _ in range(2)]), 0, 1)
    cams.astype(np.float32).tofile(ROOT / f"{i}.cam")
    logits = np.stack([smooth(grid()) for _ in range(21)])
    logits[0] += 3 * (1 - inside)
    logits[8] += 5 * inside
    probabilities = {3: np.concatenate([((1 - cams.max(0)) ** 4)[None], cams]), 21: np.exp(logits) / np.exp(logits).sum(0)}
    for n, of in probabilities.items():
        np.log(np.clip(of, 1e-5, 1)).astype(np.float32).tofile(ROOT / f"{i}.log{n}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width", type=int, default=500)
    args = parser.parse_args()
    enter_venv(ROOT / "venv", PINNED)
    for i in range(args.images):
        draw(i, args.height, args.width)
    import numpy as np
    size = {"folder": str(ROOT), "images": args.images, "height": args.height, "width": args.width}
    workers = {"reference": Worker(reference(HERE / "reference.py"), 1), "ours": Worker(shlex.split(args.ours), 1)}
    for worker in workers.values():
        worker("load", **size)

    seconds, differences = {}, []
    for name, (n_labels, parameters) in CRFS.items():
        for _ in range(args.repetitions):
            for side, worker in workers.items():
                found = worker("crf", labels=n_labels, parameters=parameters, jobs=1, out=str(ROOT / f"{side}.out"))
                seconds.setdefault((f"crf_{name}", side), []).append(found["seconds"])
            many = workers["ours"]("crf", labels=n_labels, parameters=parameters, jobs=args.jobs, out=None)
            seconds.setdefault((f"crf_{name}", "jobs"), []).append(many["seconds"])
        first = [np.fromfile(ROOT / f"{side}.out", np.float32) for side in workers]
        differences.append(float(np.abs(first[0] - first[1]).max()))
    mious = {}
    for _ in range(args.repetitions):
        for side, worker in workers.items():
            found = worker("sweep", thresholds=50)
            seconds.setdefault(("sweep", side), []).append(found["seconds"])
            mious[side] = found["mious"]
    for worker in workers.values():
        worker.close()

    seconds = {of: statistics.median(values) for of, values in seconds.items()}
    ratios = {what: round(seconds[what, "reference"] / seconds[what, "ours"], 3) for what in ("crf_psa", "crf_deeplab", "sweep")}
    one, many = (sum(seconds[f"crf_{name}", side] for name in CRFS) for side in ("ours", "jobs"))
    ratios["crf_scaling"] = round(one / many, 3)
    for (what, side), value in seconds.items():
        print(f"{what:12}{side:10}{1000 * value / args.images:10.1f} ms an image")
    apart = max(abs(a - b) for a, b in zip(mious["reference"], mious["ours"]))
    print(json.dumps(ratios | {"difference": max(differences), "miou_difference": apart, "jobs": args.jobs,
                               "seconds": {f"{what} {side}": round(value, 4) for (what, side), value in seconds.items()},
                               "repetitions": args.repetitions, **size}))


if __name__ == "__main__":
    main()
