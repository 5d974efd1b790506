"""instances.json with every kind of outline, and the masks pycocotools makes of it (pip install pycocotools safetensors).

Each object by itself: `pycocotools.mask` as in `COCO.annToMask`. In one picture: the smallest `area` on top, of equals
the first; a crowd is 255 and lies below all objects.
"""

import json
import os

import numpy as np
from pycocotools import mask as coco
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(0)
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
LABEL = {1: 1, 18: 2, 90: 3}

images, annotations, masks = [], [], {}


def binary(segmentation, h, w):
    if isinstance(segmentation, list):
        rle = coco.merge(coco.frPyObjects(segmentation, h, w))
    elif isinstance(segmentation["counts"], list):
        rle = coco.frPyObjects(segmentation, h, w)
    else:
        rle = segmentation
    return coco.decode(rle) > 0


def picture(h, w, objects):
    """`objects`: (category, outline, area or None for the one in pixels, crowd)"""
    image = len(images) + 1
    images.append({"id": image, "file_name": f"{image:03}.png", "height": h, "width": w})
    drawn = []
    for category, outline, area, crowd in objects:
        pixels = binary(outline, h, w)
        found = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": crowd, "segmentation": outline}
        if area is not None:
            found["area"] = area
        annotations.append(found)
        drawn.append((area if area is not None else int(pixels.sum()), pixels, LABEL[category], crowd))
    mask = np.zeros((h, w), np.uint8)
    for _, pixels, _, crowd in drawn:
        if crowd:
            mask[pixels] = 255
    free = np.ones((h, w), bool)
    for _, pixels, label, crowd in sorted(drawn, key=lambda one: one[0]):
        if not crowd:
            mask[pixels & free] = label
            free &= ~pixels
    masks[f"{image:03}"] = mask


def corners(h, w, n, spread=1.0, decimals=2):
    xy = np.stack([rng.uniform(-0.5, 0.5, n) * w * spread + w / 2, rng.uniform(-0.5, 0.5, n) * h * spread + h / 2], 1)
    return [float(v) for v in np.round(xy.ravel(), decimals)] if decimals is not None else [float(v) for v in xy.ravel()]


def ring(h, w, n):
    """A polygon that does not cross itself."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, n))
    radius = rng.uniform(0.2, 0.6, n)
    xy = np.stack([w / 2 + w * radius * np.cos(angle), h / 2 + h * radius * np.sin(angle)], 1)
    return [float(v) for v in np.round(xy.ravel(), 2)]


def blob(h, w):
    """Random pixels in coarse cells, so with holes and islands."""
    cells = rng.random((h // 3 + 1, w // 3 + 1)) < 0.5
    return np.kron(cells, np.ones((3, 3), bool))[:h, :w]


def uncompressed(pixels):
    flat = np.asfortranarray(pixels).ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist() + [flat.size]
    return {"counts": [int(n) for n in np.diff([0] + edges)], "size": list(pixels.shape)}


def compressed(pixels):
    rle = coco.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"counts": rle["counts"].decode(), "size": list(pixels.shape)}


def size():
    return int(rng.integers(5, 60)), int(rng.integers(5, 60))


for i in range(60):  # one polygon: crossing itself or not, in the image or partly beyond it, in whole pixels or not
    h, w = size()
    n = int(rng.integers(3, 12))
    kind = i % 5
    polygon = [ring(h, w, n), corners(h, w, n, 1.0), corners(h, w, n, 3.0), corners(h, w, n, 1.5, 0), corners(h, w, n, 1.0, None)][kind]
    picture(h, w, [(18, [polygon], None, 0)])
for polygon in [
    [3, 3, 3, 3, 3, 3],  # a point
    [2.0, 2.0, 8.0, 2.0, 5.0, 2.0],  # a line
    [2.4, 2.4, 2.6, 2.4, 2.5, 2.6],  # below a pixel
    [2, 2, 3, 2, 3, 3, 2, 3],  # a pixel
    [-20, -20, -10, -20, -10, -10],  # beyond
    [-50, -50, 90, -50, 90, 90, -50, 90],  # around
    [0, 0, 12, 0, 12, 9, 0, 9],  # the image
    [0.5, 0.5, 11.5, 0.5, 11.5, 8.5, 0.5, 8.5],
    [11.99, 8.99, 12.0, 3.0, 13.0, 9.5],
    [1, 1, 10, 1, 10, 8, 1, 8, 1, 1, 4, 3, 8, 3, 8, 6, 4, 6, 4, 3],  # a hole, through a slit
]:
    picture(9, 12, [(90, [[float(v) for v in polygon]], None, 0)])
for _ in range(15):  # several parts, apart or over one another
    h, w = size()
    parts = [corners(h, w, int(rng.integers(3, 8)), 1.2) for _ in range(int(rng.integers(2, 5)))]
    picture(h, w, [(1, parts, None, 0)])
for i in range(16):  # run lengths
    h, w = size()
    pixels = blob(h, w)
    pixels[0, 0] = i % 2 == 0
    pixels[-1, -1] = i % 4 < 2
    picture(h, w, [(18, [uncompressed, compressed][i // 8](pixels), None, 0)])
for i in range(20):  # pictures with much in them
    h, w = size()
    objects = []
    for _ in range(int(rng.integers(2, 7))):
        category = int(rng.choice([1, 18, 90]))
        crowd = int(rng.random() < 0.25)
        if crowd or rng.random() < 0.3:
            outline = [uncompressed, compressed][int(rng.integers(2))](blob(h, w))
        else:
            outline = [ring(h, w, int(rng.integers(3, 10)))]
        area = [None, 5.0, float(rng.integers(1, 4))][int(rng.integers(3))]
        objects.append((category, outline, area, crowd))
    picture(h, w, objects)

with open(os.path.join(HERE, "instances.json"), "w") as file:
    json.dump({"info": {"year": 2014}, "images": images, "licenses": [], "annotations": annotations, "categories": CATEGORIES}, file)
save_file(masks, os.path.join(HERE, "golden.safetensors"))
print(len(images), "pictures,", sum(int((mask > 0).sum()) for mask in masks.values()), "painted pixels")
