"""Masks of the public segment-everything with MobileSAM, over real photographs.

usage: make.py MOBILE_SAM_CHECKOUT WEIGHTS.safetensors OUT.safetensors IMAGE...

MOBILE_SAM_CHECKOUT is a checkout of the public MobileSAM repository (PyPI's mobilesam-mirror has the same files); needs
torch, torchvision, timm, numpy, pillow, safetensors, opencv-python-headless. An IMAGE is a JPEG, those of
tests/it/sam_everything.rs in that order: decoding and resizing are the public code's as well.

Kept for image i, 16 points a side, in the order of `generate`: `i.iou` and `i.stability` (M), `i.box` (M, 4) xywh, and
the masks: `i.counts`, the uncompressed COCO run lengths (column-major, zeros first) of all masks in a row, `i.lengths`
(M) of them each. `area.*` is image 0 with min_mask_region_area=100; `crop.*` is image 0
with crop_n_layers=1 and crop_n_points_downscale_factor=2, with `crop.crop_box` (M, 4) xywh.
"""
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

checkout, weights, out, *images = sys.argv[1:]
sys.path.insert(0, checkout)
from mobile_sam import SamAutomaticMaskGenerator, sam_model_registry  # noqa: E402

sam = sam_model_registry["vit_t"]()
state = {k: v.float() for k, v in load_file(weights).items()}
print(sam.load_state_dict(state, strict=False))
sam.eval()
golden = {}


def generate(prefix, path, **options):
    rgb = np.array(Image.open(path).convert("RGB"))
    found = SamAutomaticMaskGenerator(sam, points_per_side=16, output_mode="uncompressed_rle", **options).generate(rgb)
    counts = [mask["segmentation"]["counts"] for mask in found]
    table = lambda key, dtype: torch.tensor([mask[key] for mask in found], dtype=dtype)  # noqa: E731
    golden.update({
        f"{prefix}.iou": table("predicted_iou", torch.float32), f"{prefix}.box": table("bbox", torch.int32),
        f"{prefix}.stability": table("stability_score", torch.float32),
        f"{prefix}.counts": torch.tensor(sum(counts, []), dtype=torch.int32),
        f"{prefix}.lengths": torch.tensor([len(c) for c in counts], dtype=torch.int32),
    })
    if "crop_n_layers" in options:
        golden[f"{prefix}.crop_box"] = table("crop_box", torch.int32)
    print(prefix, *rgb.shape[:2], len(found), "masks", flush=True)


for i, path in enumerate(images):
    generate(i, path)
generate("area", images[0], min_mask_region_area=100)
generate("crop", images[0], crop_n_layers=1, crop_n_points_downscale_factor=2)
save_file(golden, out)
