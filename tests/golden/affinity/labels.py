"""Golden label maps that AffinityNet and IRN learn from: numpy, and marginals of the public package pydensecrf (here its
fork pydensecrf2 1.1), on a small picture by formula.

    PSA    l = argmax of the CRF on [(1 - max cam)^4, cam], h = the same with 32 in place of 4;
           the label is l, 255 where l is background, 0 where h is background
    IRN    f = argmax of the CRF on the labels argmax [0.3, cam], b = the same with 0.05 in place of 0.3;
           the label is f, 255 where f is background, 0 where both are

usage: labels.py OUT.safetensors      (needs numpy, safetensors, pydensecrf2)
"""
import sys

import numpy as np
import pydensecrf.densecrf as dcrf
from safetensors.numpy import save_file

H, W, CLASSES = 44, 60, np.array([0, 4, 9])
y, x = np.mgrid[:H, :W]
inside = [(y - 16) ** 2 + (x - 18) ** 2 < 120, np.hypot(y - 30, x - 44) < 9, np.hypot(y - 30, x - 44) < 17]
IMAGE = np.stack([60 + 110 * inside[0] + (x * 7 + y * 3) % 23, 70 + 60 * inside[1] + 60 * inside[2] + (x * 5 + y * 11) % 19,
                  90 + (x + y) % 17], 2).astype(np.uint8)


def bump(row, column, reach):
    score = np.maximum(0, 1 - np.hypot(y - row, x - column) / reach)
    return np.floor(score * 256) / 256  # f16 has them


CAM = np.stack([bump(14, 20, 17), bump(30, 44, 17)])


def field(unary, sxy, srgb):
    crf = dcrf.DenseCRF2D(W, H, len(unary))
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(len(unary), -1).astype(np.float32)))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=np.ascontiguousarray(IMAGE), compat=10)
    return np.argmax(np.array(crf.inference(10)), 0).reshape(H, W)


def on_scores(alpha):
    scores = np.concatenate([(1 - CAM.max(0, keepdims=True)) ** alpha, CAM])
    return field(-np.log(np.clip(scores, 1e-5, 1)), 80, 13)


def on_labels(threshold):
    labels = np.argmax(np.concatenate([np.full((1, H, W), threshold), CAM]), 0)
    n = len(CAM) + 1
    right = np.arange(n)[:, None, None] == labels
    return field(-np.log(np.where(right, 0.7, 0.3 / (n - 1))), 50, 5)


low, high = on_scores(4), on_scores(32)
psa = CLASSES[low].astype(np.uint8)
psa[low == 0] = 255
psa[high == 0] = 0
fg, bg = on_labels(0.3), on_labels(0.05)
irn = CLASSES[fg].astype(np.uint8)
irn[fg == 0] = 255
irn[fg + bg == 0] = 0
for name, labels in (("psa", psa), ("irn", irn)):
    print(name, dict(zip(*np.unique(labels, return_counts=True))))
save_file({"psa": psa, "irn": irn, "image": IMAGE, "cam": CAM.astype(np.float32)}, sys.argv[1])
