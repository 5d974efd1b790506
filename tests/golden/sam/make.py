"""Golden tensors of MobileSAM from the public PyTorch code.

usage: make.py MOBILE_SAM_CHECKOUT WEIGHTS.safetensors OUT.safetensors FRAME...

MOBILE_SAM_CHECKOUT is a checkout of the public MobileSAM repository; needs torch, torchvision, timm, numpy, pillow,
safetensors. A FRAME is a picture of 1024 pixels' longer side, named NAME-HEIGHTxWIDTH.png after its image's size, as
the ignored test `write_frames` writes them: so both sides see the same pixels. What is kept are sub-sampled slices:
embedding[::16, ::4, ::4], low-resolution logits of 3 points [:, ::8, ::8], predicted IoUs, and the
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
    h, w = map(int, path.rsplit("-", 1)[1].removesuffix(".png").split("x"))
    frame = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
    SamPredictor.set_image = lambda self, _, image_format="RGB": self.set_torch_image(frame, (h, w))
    rgb = np.zeros((h, w, 3), np.uint8)
    predictor = SamPredictor(sam)
    predictor.set_image(rgb)
    points = torch.tensor([[[w * x, h * y]] for x, y in [(0.5, 0.5), (0.3, 0.6), (0.7, 0.4)]])
    points = predictor.transform.apply_coords_torch(points, (h, w))
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(points=(points, torch.ones(3, 1)), boxes=None, masks=None)
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
        f"{i}.points": points.contiguous(), f"{i}.low_res": low_res[:, :, ::8, ::8].contiguous(), f"{i}.iou": iou.contiguous(),
        f"{i}.se_map": torch.from_numpy(se_map[::4, ::4].astype(np.int64)),
        f"{i}.n_masks": torch.tensor([len(masks)]),
    }
    print(path, h, w, len(masks), iou)
save_file(golden, out)
