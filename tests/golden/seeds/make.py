"""Scores of CAM seeds at every background threshold, with numpy (pip install numpy safetensors).

The scheme of evaluation.py of the authors' code: background is a channel of the threshold's value before the CAMs, a
pixel is its highest channel, of equals the first; a threshold at a time. `full` takes the best of all, `early_stop`
those of 0.00 to 0.49 up to the first that is no better. Of epochs, `best_gt` takes the one whose seeds score best.
IoU is taken over the whole set; its mean over the labels that the truth has.
"""

import os

import numpy as np
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
LABELS = 5  # with background
rng = np.random.default_rng(5)


def image(h, w, classes):
    truth = np.zeros((h, w), np.uint8)
    for c in classes:
        y, x = rng.integers(0, h - 8), rng.integers(0, w - 8)
        truth[y : y + rng.integers(6, h), x : x + rng.integers(6, w)] = c
    truth[rng.random((h, w)) < 0.05] = 255
    return truth


def cam(truth, classes, noise):
    """Strong in a part of an object, weak in the rest; some rows in sixteenths, which meet each other and thresholds."""
    h, w = truth.shape
    out = []
    for c in classes:
        strong = np.where(np.arange(w) < w // 2, 0.85, 0.45)[None]
        score = np.where(truth == c, strong, 0.1) + noise * rng.normal(size=(h, w))
        score[::4] = np.round(score[::4] * 16) / 16
        out.append(np.clip(score, 0, 1))
    return np.stack(out).astype(np.float16)


def miou(cams, truths, threshold):
    hit, pred, real = (np.zeros(LABELS) for _ in range(3))
    for (scores, classes), truth in zip(cams, truths):
        stack = np.zeros((LABELS, *truth.shape), np.float32)
        stack[0] = np.float32(threshold)
        stack[classes] = scores
        labels, counted = stack.argmax(0), truth != 255
        for c in range(LABELS):
            hit[c] += ((labels == c) & (truth == c) & counted).sum()
            pred[c] += ((labels == c) & counted).sum()
            real[c] += ((truth == c) & counted).sum()
    has = real > 0
    return float((hit[has] / (real + pred - hit)[has]).mean())


of_image = [[1], [2, 3], [1, 3]]  # 4 is nowhere
truths = [image(24, 30, of_image[0]), image(31, 22, of_image[1]), image(26, 26, of_image[2])]
out = {f"truth.{i}": truth for i, truth in enumerate(truths)}
out |= {f"classes.{i}": np.array(classes, np.uint8) for i, classes in enumerate(of_image)}
full, early = [], []
for epoch, noise in enumerate([0.3, 0.1, 0.2]):
    cams = [(cam(truth, classes, noise), classes) for truth, classes in zip(truths, of_image)]
    out |= {f"cam.{epoch}.{i}": scores for i, (scores, _) in enumerate(cams)}
    curve = [miou(cams, truths, t / 100) for t in range(101)]
    full.append(curve)
    n, best = 0, 0.0
    while n < 50:
        n += 1
        if curve[n - 1] <= best:
            break
        best = curve[n - 1]
    early.append(n)
out["curve"] = np.array(full)
out["early"] = np.array(early, np.int64)
out["threshold"] = np.array([[int(np.argmax(c)), int(np.argmax(c[:n]))] for c, n in zip(full, early)], np.int64)
out["epoch"] = np.array([int(np.argmax([max(c) for c in full]))], np.int64)
print(out["threshold"], out["early"], out["epoch"], [max(c) for c in full])
save_file(out, os.path.join(HERE, "golden.safetensors"))
