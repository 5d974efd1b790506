"""Decoding and resizing against Pillow, on one core of this machine.

usage, from the repository root: bench.py OURS [--before OURS] [--images FOLDER] [--limit N] [--repetitions N]

OURS is a command line that speaks the protocol of reference.py; `--before` is that of another commit, which is timed in the
same run. FOLDER has JPEGs, of which the first N by name are taken; without it 12 pictures are drawn and saved as JPEG. All
files are decoded, resized to a longer side of 1024 (bilinear, as for SAM), and of 300 (bicubic, as for training). The sides
take turns. Pillow is installed from PyPI into target/bench-pixels/venv.

The last line is a JSON object: for each step `pillow` and, with `--before`, `before`: their median seconds / ours (above 1:
ours is faster), and `different`: the images that are not Pillow's to the byte.
"""
import argparse
import json
import pathlib
import shlex
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "common"))
from common import Worker, enter_venv, reference  # noqa: E402

ROOT = pathlib.Path("target/bench-pixels")
PINNED = ["numpy==2.4.6", "pillow==13.0.0", "blake3==1.0.11"]
STEPS = {"decode": ("decode", {}), "to 1024": ("resize", {"longest": 1024, "filter": "bilinear"}),
         "to 300": ("resize", {"longest": 300, "filter": "bicubic"})}


def draw(i):
    """Writes a picture of smooth colours, with edges and grain; gives its path."""
    import numpy as np
    from PIL import Image
    random = np.random.default_rng(i)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    values = np.asarray(coarse.resize((500, 375), Image.BICUBIC)).astype(float)
    values[100:300, 150:400] *= random.uniform(0.3, 1.2, 3)
    path = ROOT / f"{i}.jpg"
    Image.fromarray((values + random.normal(0, 6, values.shape)).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("--before")
    parser.add_argument("--images", type=pathlib.Path)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    enter_venv(ROOT / "venv", PINNED)
    paths = sorted(args.images.rglob("*.jpg"))[:args.limit] if args.images else [draw(i) for i in range(12)]
    if not paths:
        sys.exit(f"error: there is no .jpg in {args.images}\nhint: --images names a folder of JPEGs")
    commands = {"pillow": reference(HERE / "reference.py"), "ours": shlex.split(args.ours)}
    if args.before:
        commands["before"] = shlex.split(args.before)
    workers = {side: Worker(command, 1) for side, command in commands.items()}
    for worker in workers.values():
        worker("load", paths=[str(path) for path in paths])
    found = {}
    for name, (do, asked) in STEPS.items():
        seconds, digests = {side: [] for side in workers}, {}
        for _ in range(args.repetitions):
            for side, worker in workers.items():
                answer = worker(do, **asked)
                seconds[side].append(answer["seconds"])
                digests[side] = answer["digests"]
        median = {side: statistics.median(values) for side, values in seconds.items()}
        for side, value in median.items():
            print(f"{name:10}{side:10}{1000 * value / len(paths):10.2f} ms an image")
        found[name] = {side: round(value / median["ours"], 3) for side, value in median.items() if side != "ours"}
        found[name]["different"] = sum(a != b for a, b in zip(digests["ours"], digests["pillow"]))
    for worker in workers.values():
        worker.close()
    print(json.dumps(found | {"images": len(paths), "repetitions": args.repetitions}))


if __name__ == "__main__":
    main()
