"""Golden tensors of SAM ViT-B from the public PyTorch code, with weights and a picture made by formulas.

usage: make.py OUT.safetensors

Needs segment-anything, torch, torchvision, numpy, safetensors. No checkpoint is involved: `weight` makes every tensor
from its name, `picture` and `mask_prompt` the inputs. Kept are sub-sampled slices: the embedding [0, ::8, ::4, ::4];
for each prompt case its inputs (`coords`, `labels`, `boxes` in the 1024 frame), the low-resolution logits
[:, :, ::8, ::8] with a `patch` [:, :, 96:108, 96:108] (all phases of the upscaling) and predicted IoUs. To check a port
of the formulas: the first eight values of some weights (`check.NAME`), `check.frame` [:, ::100, ::128] and `check.mask`
[::16, ::16]. `names`: the name and shape of every weight.
"""
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry

CHECKED = ["image_encoder.pos_embed", "image_encoder.patch_embed.proj.weight", "image_encoder.blocks.2.norm1.weight",
           "image_encoder.blocks.0.attn.qkv.bias", "image_encoder.blocks.2.attn.rel_pos_h",
           "mask_decoder.iou_token.weight", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
           "mask_decoder.output_upscaling.0.weight"]


def weight(name, shape):
    """SplitMix64, seeded by the FNV-1a hash of the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    u64, f32 = np.uint64, np.float32
    z = u64(seed) + np.arange(1, np.prod(shape, dtype=int) + 1, dtype=u64) * u64(0x9E3779B97F4A7C15)
    z = (z ^ z >> u64(30)) * u64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> u64(27)) * u64(0x94D049BB133111EB)
    z ^= z >> u64(31)
    v = 2 * ((z >> u64(40)).astype(f32) / f32(2**24)) - 1
    if "pos_embed" in name:
        v *= f32(0.02)
    elif "positional_encoding_gaussian_matrix" in name:
        pass
    elif len(shape) == 1:
        v = 1 + f32(0.1) * v if name.endswith(".weight") else f32(0.02) * v
    else:
        v *= f32(np.sqrt(3 / np.prod(shape[1:])))
    assert v.dtype == f32
    return torch.from_numpy(v.reshape(shape))


def picture(h, w):
    y, x = np.mgrid[:h, :w]
    rgb = [(3 * x + 5 * y + x * y // 64) % 256, (7 * x + y * y // 128) % 256, (x * x // 256 + 2 * y) % 256]
    return torch.from_numpy(np.stack(rgb).astype(np.uint8))[None]


def mask_prompt():
    y, x = np.mgrid[:256, :256]
    return torch.from_numpy((8 * np.sin(x / 19) * np.cos(y / 23)).astype(np.float32))[None, None]


sam = sam_model_registry["vit_b"]().eval()
state = {k: weight(k, v.shape) for k, v in sam.state_dict().items()}
print(len(state), "tensors,", sam.load_state_dict(state))
frame, mask = picture(700, 1024), mask_prompt()
points = torch.tensor([[[512.0, 350], [100, 80]], [[300.5, 420.25], [900, 650]], [[717, 281], [20, 690]]])
boxes = torch.tensor([[120.0, 90, 640, 510], [600.5, 200.25, 1010, 695]])
one, pair = torch.tensor([[[420.0, 333]]]), torch.tensor([[[300.0, 250]], [[800, 400]]])
yes = lambda coords: torch.ones(coords.shape[:2], dtype=torch.int64)  # noqa: E731
labels = torch.tensor([[1, 0]]).repeat(3, 1)
CASES = {  # coords, labels, boxes, mask, multimask
    "points": (points, labels, None, None, True),
    "single": (points, labels, None, None, False),
    "box": (None, None, boxes, None, False),
    "box_multi": (None, None, boxes, None, True),
    "box_points": (pair, yes(pair), boxes, None, False),
    "mask_points": (one, yes(one), None, mask, True),
    "mask": (None, None, None, mask, True),
}
golden = {f"check/{k}": state[k].flatten()[:8].clone() for k in CHECKED}
golden |= {"check/frame": frame[0, :, ::100, ::128].contiguous(), "check/mask": mask[0, 0, ::16, ::16].contiguous()}
with torch.no_grad():
    features = sam.image_encoder(sam.preprocess(frame))
    golden["embedding"] = features[0, ::8, ::4, ::4].contiguous()
    print("embedding", features.min(), features.max(), features.std())
    for name, (coords, signs, box, low_mask, multimask) in CASES.items():
        sparse, dense = sam.prompt_encoder(
            points=None if coords is None else (coords, signs), boxes=box, masks=low_mask)
        low_res, iou = sam.mask_decoder(
            image_embeddings=features, image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=multimask)
        inputs = {"coords": coords, "labels": signs, "boxes": box}
        golden |= {f"{name}.{k}": v.clone() for k, v in inputs.items() if v is not None}
        golden |= {f"{name}.low_res": low_res[:, :, ::8, ::8].contiguous(), f"{name}.iou": iou.contiguous(),
                   f"{name}.patch": low_res[:, :, 96:108, 96:108].contiguous()}
        print(name, tuple(low_res.shape), low_res.min(), low_res.max(), low_res.std(), iou)
names = "\n".join(f"{k} {' '.join(map(str, v.shape))}" for k, v in state.items())
golden["names"] = torch.from_numpy(np.frombuffer(names.encode(), np.uint8).copy())
save_file(golden, sys.argv[1])
