"""Golden numbers of L_SSC, value and gradient, with each of its switches, written from the equation in PyTorch:

    loss = - sum_p log( exp(z_p . P_k(p) / T) / sum_j exp(z_p . P_j / T) ) / pixels in segments

z: features resized to the SE map (bilinear) and of unit length; P: unit mean of z over a segment. What the switches do:
S2C paper, section 3.2, and what the released code does otherwise (docs/presets.md, rows 1 to 9).

usage: make.py OUT.safetensors      (needs torch, numpy, pillow, safetensors)
"""
import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

golden = {}


def wave(shape, step):
    n = int(np.prod(shape))
    return (torch.arange(n, dtype=torch.float32) * step).sin().view(shape)


def ssc(feat, ids, temperature=0.5, stopgrad=True, negative=True, mask_absent=True, everywhere=False):
    """feat (B, D, h, w) double; ids (B, H, W)."""
    batch, n_ids = len(feat), int(ids.max()) + 1
    up = F.interpolate(feat, size=ids.shape[1:], mode="bilinear", align_corners=False)
    pixels = [F.normalize(up[b].flatten(1), dim=0).t() for b in range(batch)]
    protos, exists = [], []
    for b in range(batch):
        source = pixels[b].detach() if stopgrad else pixels[b]
        of = ids[b].flatten()
        for k in range(n_ids):
            here = bool((of == k).any())
            protos.append(F.normalize(source[of == k].mean(0), dim=0) if here else torch.zeros_like(source[0]))
            exists.append((negative if k == 0 else True) and (here or not mask_absent))
    protos, exists = torch.stack(protos), torch.tensor(exists)
    total, count = 0.0, 0
    for b in range(batch):
        logits = pixels[b] @ protos.t() / temperature
        others = ~exists.clone()
        if not everywhere:
            for other in range(batch):
                if other != b:
                    others[other * n_ids : (other + 1) * n_ids] = True
        logp = F.log_softmax(logits.masked_fill(others, -torch.inf), 1)
        of = ids[b].flatten()
        for p in (of > 0).nonzero().flatten().tolist():
            total = total - logp[p, b * n_ids + int(of[p])]
            count += 1
    return total / count


def keep(name, feat, ids, **switches):
    feat = feat.double().requires_grad_()
    loss = ssc(feat, ids, **switches)
    golden[f"{name}.value"] = loss.detach().view(1)
    golden[f"{name}.grad"] = torch.autograd.grad(loss, feat)[0]


# Five segments in the first image, of which one has no pixel in the second; the second has no uncovered pixel.
places = torch.arange(2 * 24 * 20).view(2, 24, 20)
ids = (places * 7 // 50) % 5
ids[1] = ids[1].masked_fill(ids[1] == 0, 2).masked_fill(ids[1] == 3, 1)
feat = wave((2, 8, 6, 5), 0.3) + 1.1
# Neighbours in all directions, so that interpolation nearly cancels in places: features of CAM logits.
signed = wave((2, 3, 6, 5), 0.9)
for name, of in (("feature", feat), ("logit", signed)):
    keep(f"{name}", of, ids)
    keep(f"{name}.temperature", of, ids, temperature=1.0)
    keep(f"{name}.cold", of, ids, temperature=1 / 14)
    keep(f"{name}.through", of, ids, stopgrad=False)
    keep(f"{name}.phantoms", of, ids, mask_absent=False)
    keep(f"{name}.phantoms.no_negative", of, ids, mask_absent=False, negative=False)
    keep(f"{name}.no_negative", of, ids, negative=False)
    keep(f"{name}.global", of, ids, everywhere=True)
    keep(f"{name}.global.through.phantoms", of, ids, everywhere=True, stopgrad=False, mask_absent=False)
# Fewer pixels than features along an axis, and one feature in all.
keep("shrunk", wave((1, 4, 9, 3), 0.3) + 1.1, ids[:1, :6, :7])
keep("single", wave((2, 4, 1, 1), 0.3) + 1.1, ids)


# Windows of SE maps, as the loader of the released code makes them and as they should be. An id grows with the
# predicted IoU there; in our maps it falls.
def window(se, resized, flip, offset, side, fixed, wrapped):
    """se (H, W) with ids from 0 in the order of the released code, -1 uncovered."""
    se = se + 1
    if wrapped:
        se = se.astype(np.uint8)
    se = np.array(Image.fromarray(se.astype(np.int32), mode="I").resize(resized[::-1], Image.NEAREST))
    se = se[:, ::-1] if flip else se
    if not fixed:
        se = np.searchsorted(np.unique(se), se)
    out = np.zeros((side, side), np.int64)
    y, x = offset
    part = se[max(y, 0) : y + side, max(x, 0) : x + side]
    out[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]] = part
    if fixed:
        unique = np.unique(np.append(out, 0))
        out = np.searchsorted(unique, out)
    return torch.from_numpy(out.copy())


y, x = np.mgrid[:30, :40]
many = (y // 2) * 20 + x // 2  # 300 segments, no uncovered pixel
few = np.where(y < 10, -1, y // 10 * 4 + x // 10)  # and one with uncovered pixels
transforms = [((24, 32), True, (3, -2)), ((24, 32), False, (0, 5))]
for fixed in (True, False):
    for wrapped in (True, False):
        ids = torch.stack([
            window(se, resized, flip, offset, 20, fixed, wrapped)
            for se, (resized, flip, offset) in zip((many, few), transforms)])
        name = f"window.{'fixed' if fixed else 'buggy'}.{'u8_wrap' if wrapped else 'u16'}"
        golden[f"{name}.ids"] = ids
        keep(name, wave((2, 8, 5, 5), 0.3) + 1.1, ids, mask_absent=False)

save_file({
    name: (value if value.dtype == torch.int64 else value.float()).contiguous() for name, value in golden.items()
}, sys.argv[1])
print(len(golden), "tensors")
