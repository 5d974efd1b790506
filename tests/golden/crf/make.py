"""Golden numbers of the dense CRF: marginals of the public package pydensecrf (here its fork pydensecrf2 1.1), on three
photographs and on a small picture by formula.

The photographs are those of `tests/it/crf.rs`, JPEGs as Pillow decodes them, with their masks, from DATA, a tree in VOC
layout. Scores: the part of a block of 24 x 24 pixels that is in some mask, times 0.9; and those of a second class, 40
columns to the right, times 0.35.

usage: make.py DATA OUT.safetensors      (needs numpy, pillow, safetensors, pydensecrf2)
"""
import pathlib
import sys

import numpy as np
import pydensecrf.densecrf as dcrf
from PIL import Image
from pydensecrf.utils import unary_from_labels, unary_from_softmax
from safetensors.numpy import save_file

IMAGES = ["2007_003841", "2008_007770", "2009_000219"]
# iterations; Gaussian sxy, weight; bilateral sxy, srgb, weight
SETS = {"psa": (10, 3, 3, 80, 13, 10), "irn": (10, 3, 3, 50, 5, 10), "deeplab": (10, 1, 3, 67, 3, 4),
        "seam": (1, 3, 3, 32, 13, 10)}


def marginals(image, unary, parameters):
    t, gaussian_sxy, gaussian_weight, sxy, srgb, weight = parameters
    height, width, _ = image.shape
    crf = dcrf.DenseCRF2D(width, height, len(unary))
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    crf.addPairwiseGaussian(sxy=gaussian_sxy, compat=gaussian_weight)
    crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=np.ascontiguousarray(image), compat=weight)
    return np.array(crf.inference(t), np.float32)


def cam(mask):
    """(2, height, width)"""
    inside = ((mask > 0) & (mask < 255)).astype(np.float32)
    scores = np.zeros_like(inside)
    for y in range(0, len(mask), 24):
        for x in range(0, mask.shape[1], 24):
            block = inside[y:y + 24, x:x + 24]
            scores[y:y + 24, x:x + 24] = block.sum() / np.float32(block.size) * np.float32(0.9)
    return np.stack([scores, np.roll(scores, 40, axis=1) * np.float32(0.35)])


def unaries(cam):
    best = cam.max(0)
    labels = np.where(best > 0.3, cam.argmax(0) + 1, 0)
    with_background = lambda background: unary_from_softmax(np.concatenate([background[None], cam]))  # noqa: E731
    keys, sharp = np.unique(labels, return_inverse=True)
    return {"psa": with_background((1 - best) ** 4), "deeplab": with_background(1 - best),
            "seam": with_background(1 - best),
            "irn": unary_from_labels(sharp.reshape(-1), len(keys), gt_prob=0.7, zero_unsure=False)}


def main(data, out):
    golden = {}
    for name in IMAGES:
        image = np.array(Image.open(pathlib.Path(data) / f"JPEGImages/{name}.jpg").convert("RGB"))
        mask = np.array(Image.open(pathlib.Path(data) / f"SegmentationClassAug/{name}.png"))
        for of, unary in unaries(cam(mask)).items():
            golden[f"{name}.{of}"] = marginals(image, unary, SETS[of])[:, ::499]

    height, width = 44, 60
    y, x, c = np.mgrid[:height, :width, :3]
    image = ((x * 3 // 7 + y * (5 + 2 * c) // 9 + (x // 16 + y // 16) % 2 * 90) % 256).astype(np.uint8)
    i, k = np.arange(height * width)[None], np.arange(21)[:, None]
    scores = ((i * (7 + k) + k * k * 31) // 97 % 64 + 1).astype(np.float32) / 64
    for of, parameters in SETS.items():
        golden[f"formula.{of}"] = marginals(image, unary_from_softmax(scores), parameters)[:, ::11]
    save_file({name: np.ascontiguousarray(value) for name, value in golden.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
