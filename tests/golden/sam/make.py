"""Golden tensors of MobileSAM from the public PyTorch code.

usage: make.py WEIGHTS.safetensors OUT.safetensors IMAGE...

Needs torch, torchvision, timm, numpy, pillow, safetensors and mobile_sam (PyPI: mobilesam-mirror). An IMAGE is a JPEG,
those of tests/it/sam_everything.rs in that order; it is decoded and resized as the public code does. What is kept are sub-sampled slices: embedding[::16, ::8, ::8], low-resolution logits of a grid of 16 points
[:, ::16, ::16], predicted IoUs. The reference's own f32 is within 2e-6 of f64 in embeddings, 1.8e-4 in logits.
"""
import sys

import numpy as np
import torch
from mobile_sam import sam_model_registry
from mobile_sam.utils.transforms import ResizeLongestSide
from PIL import Image
from safetensors.torch import load_file, save_file

weights, out, *images = sys.argv[1:]
sam = sam_model_registry["vit_t"]()
print(sam.load_state_dict({k: v.float() for k, v in load_file(weights).items()}, strict=False))
sam.eval()  # after loading: TinyViT keeps its biases here
golden = {}
for i, path in enumerate(images):
    frame = ResizeLongestSide(1024).apply_image(np.array(Image.open(path).convert("RGB")))
    frame = torch.from_numpy(frame).permute(2, 0, 1)[None]
    h, w = frame.shape[2:]
    points = torch.tensor([[[w * (x + 0.5) / 4, h * (y + 0.5) / 4]] for y in range(4) for x in range(4)])
    with torch.no_grad():
        embedding = sam.image_encoder(sam.preprocess(frame))
        sparse, dense = sam.prompt_encoder(points=(points, torch.ones(16, 1)), boxes=None, masks=None)
        low_res, iou = sam.mask_decoder(
            image_embeddings=embedding, image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True)
    golden |= {
        f"{i}.embedding": embedding[0, ::16, ::8, ::8].contiguous(),
        f"{i}.points": points.contiguous(), f"{i}.low_res": low_res[:, :, ::16, ::16].contiguous(), f"{i}.iou": iou.contiguous(),
    }
    print(path, float(low_res.abs().max()))
save_file(golden, out)
