"""Heads of DeepLab in PyTorch: torchvision's for v3, and LargeFOV and v3+ from their definitions.

Weights are waves, made again by the test: sines in f64, rounded to f32. All else is in f64, so that nothing of this
processor is in it. Dropout is off; batch norms are in both modes.
"""

import os

import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead

torch.set_default_dtype(torch.float64)
HERE = os.path.dirname(os.path.abspath(__file__))
LABELS, FEATURES, LOW = 4, 16, 12
out = {}


def wave(shape, step):
    n = torch.Size(shape).numel()
    return torch.sin(torch.arange(n, dtype=torch.float64) * step).float().view(shape)


def slices(x, n):
    flat = x.detach().flatten()
    return flat[:: max(flat.numel() // n, 1)][:n].float()


class V3Plus(nn.Module):
    """Chen et al. 2018, figure 2: 1x1 to 48 channels, concatenation at stride 4, two 3x3 of 256."""

    def __init__(self, rates):
        super().__init__()
        self.add_module("0", ASPP(FEATURES, rates))
        self.low = nn.Sequential(nn.Conv2d(LOW, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.add_module("1", nn.Sequential(
            nn.Conv2d(304, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
            nn.Dropout(0.5), nn.Conv2d(256, LABELS, 1),
        ))  # fmt: skip

    def forward(self, x, low):
        low = self.low(low)
        deep = nn.functional.interpolate(getattr(self, "0")(x), size=low.shape[2:], mode="bilinear", align_corners=False)
        return getattr(self, "1")(torch.cat([deep, low], 1))


def large_fov(dilation):
    """Of the SEAM authors' DeepLab on ResNet38d (YudeWang/semantic-segmentation-codebase)."""
    return nn.Sequential(
        nn.Conv2d(FEATURES, 512, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(512, momentum=3e-4), nn.ReLU(),
        nn.Conv2d(512, 512, 1, bias=False), nn.BatchNorm2d(512, momentum=3e-4), nn.ReLU(),
        nn.Dropout(0.5), nn.Conv2d(512, LABELS, 1),
    )  # fmt: skip


x, low = (wave([2, FEATURES, 30, 26], 0.37) + 0.5).double(), (wave([2, LOW, 59, 52], 0.21) + 0.5).double()
for name, head, inputs in [
    ("large_fov.8", large_fov(12), [x]),
    ("large_fov.16", large_fov(6), [x]),
    ("v3.8", DeepLabHead(FEATURES, LABELS, [12, 24, 36]), [x]),
    ("v3.16", DeepLabHead(FEATURES, LABELS, [6, 12, 18]), [x]),
    ("v3plus.8", V3Plus([12, 24, 36]), [x, low]),
]:
    state = {key: value for key, value in head.state_dict().items() if "num_batches" not in key}
    for i, (key, value) in enumerate(sorted(state.items())):
        made = wave(value.shape, 0.1 + 0.37 * i)
        if value.dim() == 4:
            made = made * (2.0 / value[0].numel() ** 0.5)
        elif key.endswith("running_var") or key.endswith("weight"):
            made = 1.0 + 0.3 * made
        else:
            made = 0.2 * made
        value.copy_(made)
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    head.eval()
    out[f"{name}.eval"] = slices(head(*inputs), 256)
    head.train()
    logits = head(*inputs)
    out[f"{name}.train"] = slices(logits, 256)
    logits.square().mean().backward()
    for key, value in head.named_parameters():
        out[f"{name}.grad.head.{key}"] = slices(value.grad, 8)
    for key, value in head.named_buffers():
        if "running" in key:
            out[f"{name}.stat.head.{key}"] = slices(value, 8)
save_file(out, os.path.join(HERE, "golden.safetensors"))
print(len(out), {key: float(value.abs().max()) for key, value in out.items() if key.endswith((".eval", ".train"))})
