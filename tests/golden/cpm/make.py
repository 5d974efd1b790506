"""Golden numbers of CPM, written from the paper's equations (section 3.3) and table 2.1 of the project's facts.

usage: make.py OUT.safetensors

Needs torch, numpy, scipy, scikit-image (0.26), safetensors. Names tell the switches of a case.
"""
import itertools
import sys

import numpy as np
import scipy.ndimage as ndi
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from skimage.feature import peak_local_max

rng = np.random.default_rng(5)
golden = {}


def wave(shape, step):
    n = 1
    for side in shape:
        n *= side
    return (torch.arange(n, dtype=torch.float32) * step).sin().view(shape)


# Peaks (rows 13 to 18): planes are bytes / 255, so both sides see the same scores, plateaus and ties among them.

def blobs(height, width, n, spread):
    y, x = np.mgrid[:height, :width]
    plane = np.zeros((height, width))
    for _ in range(n):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        plane += rng.uniform(0.3, 1) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * spread**2))
    return np.round(plane / plane.max() * 255).astype(np.uint8)


def spaced(peaks, distance):
    kept = []
    for y, x in peaks:
        if all(max(abs(y - a), abs(x - b)) >= distance for a, b in kept):
            kept.append((y, x))
    return kept


def local(cam, distance, exclude, exact):
    if not exact:
        filtered = ndi.maximum_filter(cam, size=3, mode="constant")
        return [tuple(peak) for peak in peak_local_max(filtered, min_distance=distance, exclude_border=exclude)]
    height, width = cam.shape
    found = []
    for y in range(height):
        for x in range(width):
            around = cam[max(y - 1, 0):y + 2, max(x - 1, 0):x + 2]
            border = min(y, x, height - 1 - y, width - 1 - x) < distance
            if cam[y, x] > 0 and cam[y, x] == around.max() and not (exclude and border):
                found.append((y, x))
    return sorted(found, key=lambda peak: -cam[peak])  # stable


def peaks(cam, tau, distance, exclude, first, exact):
    top = tuple(int(i) for i in np.unravel_index(cam.argmax(), cam.shape))
    found = local(cam, distance, exclude, exact)
    if first == "drop_first":
        return [top] + [peak for peak in spaced(found, distance) if cam[peak] > tau][1:]
    return [peak for peak in spaced([top] + found, distance) if cam[peak] >= tau]


def cone(plane, y, x, top):
    """A flat top of 3 x 3, so that its corner scores as much as its centre."""
    ys, xs = np.mgrid[:plane.shape[0], :plane.shape[1]]
    far = np.maximum(np.maximum(abs(ys - y), abs(xs - x)) - 1, 0)
    return np.maximum(plane, np.clip(top - 6.0 * far, 0, 255)).astype(np.uint8)


flat = np.zeros((60, 60), np.uint8)
planes = [blobs(160, 200, 14, 12), blobs(96, 80, 12, 6), blobs(96, 80, 30, 4), blobs(60, 90, 9, 9)]
# One peak at tau itself; none that reaches it.
planes += [cone(cone(cone(flat, 20, 20, 255), 46, 50, 102), 44, 12, 180), cone(flat, 30, 30, 80)]
for i, plane in enumerate(planes):
    golden[f"peaks.{i}.plane"] = torch.from_numpy(plane)
    cam = plane.astype(np.float32) / np.float32(255)
    distance = 20 if i == 0 else 8
    for exclude, first, exact in itertools.product((False, True), ("dedup", "drop_first"), (True, False)):
        found = peaks(cam, np.float32(0.4), distance, exclude, first, exact)
        name = f"peaks.{i}.{int(exclude)}.{first}.{int(exact)}"
        golden[name] = torch.tensor([[int(y), int(x)] for y, x in found], dtype=torch.int64).view(-1, 2)

# The pseudo map (rows 22 to 28) of a window drawn at 1024 for itself, from CAMs, logits and IoUs.

SIDE, CLASSES = 80, 3
grid = torch.stack(torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij"))


def hill(y, x, radius, slope):
    """Logits of a disc with a rough edge."""
    far = ((grid[0] - y) ** 2 + (grid[1] - x) ** 2).sqrt()
    return (radius - far) * slope + 1.5 * (grid[0] * 1.7 + grid[1] * 2.3).sin()


# Three classes that overlap, with three masks each, from part to whole. Whether a class wins by its logits, its IoU,
# its stability or its CAM differs.
places = [(90, 100, 1.3), (120, 150, 2.0), (70, 140, 0.13)]
low_res = torch.stack([torch.stack([hill(y, x, 30 + 15 * part, slope) for part in range(3)]) for y, x, slope in places])
iou = torch.tensor([[0.6, 0.9, 0.7], [0.8, 0.75, 0.85], [0.95, 0.5, 0.9]])
cams = torch.tensor([0.50, 0.45, 0.48])[:, None, None] + wave((CLASSES, SIDE, SIDE), 0.013) * 0.02
padding = torch.zeros(SIDE, SIDE, dtype=torch.bool)
padding[:, 50:] = True
# Part of what both sides have to agree on before anything else.
golden["map.low_res"], golden["map.cams"] = low_res[:, :, ::16, ::16], cams[:, ::8, ::8]


def some(x):
    return x.flatten()[::7].clone()


def resize(x, side):
    return F.interpolate(x[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0]


def pseudo_map(pick, alpha_sam, alpha_cam, pad_label, logit_path):
    open_pixels = torch.ones_like(padding) if pad_label == "bg" else ~padding
    score = torch.full((CLASSES, SIDE, SIDE), -1e5)
    for c in range(CLASSES):
        m = int(iou[c].argmax()) if pick == "best_iou" else pick
        logits = resize(low_res[c, m], SIDE)
        drawn = resize(resize(low_res[c, m], 1024), SIDE) if logit_path == "two" else logits
        mask = (drawn > 0) & open_pixels
        sam = {
            "logit": logits,
            "sigmoid": logits.sigmoid(),
            "iou": iou[c, m].expand(SIDE, SIDE),
            "amg_stability": ((logits > 1) & open_pixels).sum() / ((logits > -1) & open_pixels).sum(),
            "one": torch.ones(SIDE, SIDE),
        }[alpha_sam]
        weight = cams[c][mask].mean() if alpha_cam == "mean" else 1.0
        score[c] = torch.where(mask, sam * weight, score[c])
    best, label = score.max(0)
    background = best < 0 if logit_path == "two" else best == -1e5
    label = torch.where(background, 0, label + 1)
    return torch.where(padding, 255, label) if pad_label == "ignore" else label


for pick, alpha_sam, alpha_cam, pad_label, logit_path in itertools.product(
        (2, 0, "best_iou"), ("logit", "sigmoid", "iou", "amg_stability", "one"), ("mean", "one"),
        ("ignore", "bg"), ("one", "two")):
    name = f"map.{pick}.{alpha_sam}.{alpha_cam}.{pad_label}.{logit_path}"
    golden[name] = some(pseudo_map(pick, alpha_sam, alpha_cam, pad_label, logit_path).to(torch.uint8))

# The same of a window cut from an image (row 21): mirrored, resized, in part outside.
IMAGE, RESIZED, CROP, OFFSET = (60, 90), (110, 165), SIDE, (-10, 30)


def in_frame(size, resized, crop, offset, flip):
    """Centres of the window's pixels along an axis of the frame, -1 to 1."""
    at = torch.arange(crop, dtype=torch.float64) + 0.5 + offset
    at = resized - at if flip else at
    inner = int(size * 1024 / max(IMAGE) + 0.5)
    return at / resized * inner / 1024 * 2 - 1


ys = in_frame(IMAGE[0], RESIZED[0], CROP, OFFSET[0], False)
xs = in_frame(IMAGE[1], RESIZED[1], CROP, OFFSET[1], True)
places = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1).float()[None]
outside = [(torch.arange(CROP) + OFFSET[i] < 0) | (torch.arange(CROP) + OFFSET[i] >= RESIZED[i]) for i in (0, 1)]
padding = outside[0][:, None] | outside[1][None]


def resize(x, side):
    mode = {"mode": "bilinear", "align_corners": False}
    if side == 1024:
        return F.interpolate(x[None, None], size=(side, side), **mode)[0, 0]
    return F.grid_sample(x[None, None], places, padding_mode="border", **mode)[0, 0]


for logit_path in ("one", "two"):
    golden[f"cut.{logit_path}"] = pseudo_map(2, "logit", "mean", "ignore", logit_path).to(torch.uint8).flatten()

# What the encoder sees of a crop (row 21).
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
pixels = torch.from_numpy(rng.integers(0, 256, (3, 48, 48)).astype(np.float32))
crop = (pixels / 255 - MEAN) / STD
crop[:, 40:] = 0  # padding
frame = F.interpolate(((crop * STD + MEAN) * 255)[None], size=(1024, 1024), mode="bilinear", align_corners=True)[0]
golden["frame.crop"] = crop
golden["frame"] = frame.to(torch.uint8)[:, ::11, ::11]

# L_CPM (rows 29 and 30).
labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
pseudo = (torch.arange(2 * 24 * 20).view(2, 24, 20) * 3 // 40) % 5
pseudo = torch.where((pseudo == 0) | (pseudo == 4), pseudo, torch.where(torch.tensor([1, 0])[:, None, None] > 0,
                                                                        1 + 2 * (pseudo % 2), 2))
pseudo[pseudo == 4] = 255
golden["loss.pseudo"] = pseudo
for absent in ("zero", "neg_inf"):
    cam = (wave((2, 3, 6, 5), 0.9) * 3).requires_grad_()
    norm = F.relu(cam)
    norm = norm / (norm.amax((2, 3), keepdim=True) + 1e-5)
    norm = F.interpolate(norm, size=(24, 20), mode="bilinear", align_corners=False) * labels[:, :, None, None]
    background = 1 - norm.amax(1, keepdim=True)
    if absent == "neg_inf":
        norm = norm.masked_fill(labels[:, :, None, None] == 0, float("-inf"))
    loss = F.cross_entropy(torch.cat([background, norm], 1), pseudo, ignore_index=255)
    golden[f"loss.{absent}.value"] = loss.detach().view(1)
    golden[f"loss.{absent}.grad"] = torch.autograd.grad(loss, cam)[0]

save_file({name: tensor.contiguous() for name, tensor in golden.items()}, sys.argv[1])
print(len(golden), "tensors")
