"""Golden tensors of MobileSAM from the public PyTorch code.

usage: make.py MOBILE_SAM_CHECKOUT WEIGHTS.safetensors OUT.safetensors IMAGE...

MOBILE_SAM_CHECKOUT is a checkout of the public MobileSAM repository; needs torch, torchvision, timm, numpy, pillow,
safetensors. Each image is decoded and brought to 1024 by PIL; what is kept are sub-sampled slices, so that the file
stays small: embedding[::16, ::4, ::4], low-resolution logits of 3 points [:, ::8, ::8], predicted IoUs, and the
segment-everything map at 16 points a side (every 4th pixel), painted with the smallest mask on top.
"""
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

checkout, weights, out, *images = sys.argv[1:]
sys.path.insert(0, checkout)
from mobile_sam import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry  # noqa: E402

sam = sam_model_registry["vit_t"]()
state = {k: v.float() for k, v in load_file(weights).items()}
print(sam.load_state_dict(state, strict=False))
sam.eval()
golden = {}
for i, path in enumerate(images):
    rgb = np.asarray(Image.open(path).convert("RGB"))
    h, w = rgb.shape[:2]
    predictor = SamPredictor(sam)
    predictor.set_image(rgb)
    points = torch.tensor([[[w * x, h * y]] for x, y in [(0.5, 0.5), (0.3, 0.6), (0.7, 0.4)]])
    frame = predictor.transform.apply_coords_torch(points, (h, w))
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(points=(frame, torch.ones(3, 1)), boxes=None, masks=None)
        low_res, iou = sam.mask_decoder(
            image_embeddings=predictor.features, image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True)
    masks = SamAutomaticMaskGenerator(sam, points_per_side=16).generate(rgb)
    order = sorted(range(len(masks)), key=lambda j: (masks[j]["area"], -masks[j]["predicted_iou"], j))
    se_map = np.zeros((h, w), np.int32)
    for j in reversed(order):
        se_map[masks[j]["segmentation"]] = j + 1
    golden |= {
        f"{i}.embedding": predictor.features[0, ::16, ::4, ::4].contiguous(),
        f"{i}.points": frame.contiguous(), f"{i}.low_res": low_res[:, :, ::8, ::8].contiguous(), f"{i}.iou": iou.contiguous(),
        f"{i}.se_map": torch.from_numpy(se_map[::4, ::4].astype(np.int64)),
        f"{i}.n_masks": torch.tensor([len(masks)]),
    }
    print(path, h, w, len(masks), iou)
save_file(golden, out)
