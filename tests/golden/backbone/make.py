"""Golden features and gradients of the backbones: ResNet-18, 34 and 101 of torchvision, and ResNet38d.

usage: make.py OUT.safetensors            needs torch, torchvision, numpy, safetensors

Weights are drawn by a formula both sides have, from the names and shapes that are kept in `shapes`. ResNets: dilation
instead of stride by torchvision's rule, which it has for bottlenecks only; two convolutions of 3x3 have it as in timm
(the first keeps the dilation before, the second has the new one). v1: the stride moved to the first convolution.
ResNet38d is written down from Wu et al. 2019 (table 1, model A1 at stride 8), batch norms in evaluation.
"""
import json
import math
import sys
import zlib

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

(out,) = sys.argv[1:]
torch.set_default_dtype(torch.float64)
golden, shapes = {}, {}


def uniform(name, shape):
    """In -1..1, from a hash of the place in the tensor and the tensor's name."""
    x = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(zlib.crc32(name.encode()))
    x ^= x >> np.uint32(15)
    x *= np.uint32(2246822519)
    x ^= x >> np.uint32(13)
    values = (x >> np.uint32(8)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    return torch.from_numpy(values).view(shape)


def weight(name, shape):
    of = uniform(name, shape)
    if len(shape) == 4:
        return of * float(np.float32(math.sqrt(3 / math.prod(shape[1:]))))
    if name.endswith("running_var"):
        return 1 + of * 0.5
    return of * 0.25 + (1 if name.endswith("weight") else 0)


def slices(x, n):
    flat = x.detach().flatten()
    return flat[:: max(1, flat.numel() // n)][:n].clone()


def keep(case, feat, trained):
    golden[f"{case}.feat"] = slices(feat, 128)
    grads = torch.autograd.grad(feat.square().mean(), list(trained.values()))
    for name, grad in zip(trained, grads):
        golden[f"{case}.grad.{name}"] = slices(grad, 8)


image = (uniform("image", (2, 3, 64, 48)) * 2).double()


def set_dilation(conv, dilation):
    conv.dilation = conv.padding = (dilation, dilation)


def dilate_plain(net, output_stride):
    reached, dilation = 4, 1
    for layer in (net.layer2, net.layer3, net.layer4):
        before = dilation
        if reached < output_stride:
            reached *= 2
        else:
            dilation *= 2
            layer[0].conv1.stride = layer[0].downsample[0].stride = (1, 1)
        for block in layer:
            set_dilation(block.conv1, dilation)
            set_dilation(block.conv2, dilation)
        set_dilation(layer[0].conv1, before)


def resnet(depth, version, output_stride):
    make = getattr(torchvision.models, f"resnet{depth}")
    if depth < 50:
        net = make()
        dilate_plain(net, output_stride)
    else:
        net = make(replace_stride_with_dilation={8: [False, True, True], 16: [False, False, True]}[output_stride])
    if version == "v1":
        for layer in (net.layer2, net.layer3, net.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, (1, 1)
    state = {name: value for name, value in net.state_dict().items() if value.dim() > 0 and not name.startswith("fc")}
    shapes[f"resnet{depth}"] = {name: list(value.shape) for name, value in state.items()}
    net.load_state_dict({name: weight(name, value.shape) for name, value in state.items()}, strict=False)
    net.eval()
    x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
    feat = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    frozen = ("conv1", "bn1", "layer1", "fc")
    trained = {name: p for name, p in net.named_parameters() if not name.startswith(frozen) and p.dim() == 4}
    keep(".".join(filter(None, (f"resnet{depth}", version, str(output_stride)))), feat, trained)


for output_stride in (8, 16):
    for depth, version in ((18, ""), (34, ""), (101, "v1"), (101, "v1.5")):
        resnet(depth, version, output_stride)


# ResNet38d: level, width of the first and second convolution, blocks; the stride is 2 at levels 2 to 4.
LEVELS = ((2, 128, 128, 3), (3, 256, 256, 3), (4, 512, 512, 6), (5, 512, 1024, 3))


class Wide:
    def __init__(self):
        self.p = {}

    def get(self, name, shape):
        if name not in self.p:
            shapes.setdefault("resnet38d", {})[name] = list(shape)
            self.p[name] = weight(name, shape).double().requires_grad_()
        return self.p[name]

    def conv(self, name, x, to, side, stride=1, dilation=1):
        of = self.get(f"{name}.weight", (to, x.shape[1], side, side))
        return F.conv2d(x, of, stride=stride, padding=side // 2 * dilation, dilation=dilation)

    def norm(self, name, x):
        mean, var, gamma, beta = (
            self.get(f"{name}.{part}", (x.shape[1],)) for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean.detach(), var.detach(), gamma, beta, training=False, eps=1e-5)

    def forward(self, x, masks):
        x = self.conv("conv1a", x, 64, 3)
        for level, between, to, n in LEVELS:
            for i in range(n):
                name = f"b{level}" if i == 0 else f"b{level}_{i}"
                stride = 2 if i == 0 and level < 5 else 1
                second = 2 if level == 5 else 1
                first = 1 if i == 0 else second
                y = F.relu(self.norm(f"{name}.bn_branch2a", x))
                shortcut = x if i else self.conv(f"{name}.conv_branch1", y, to, 1, stride)
                y = self.conv(f"{name}.conv_branch2a", y, between, 3, stride, first)
                y = F.relu(self.norm(f"{name}.bn_branch2b1", y))
                x = shortcut + self.conv(f"{name}.conv_branch2b1", y, to, 3, 1, second)
        for name, widths in (("b6", (512, 1024, 2048)), ("b7", (1024, 2048, 4096))):
            y = F.relu(self.norm(f"{name}.bn_branch2a", x))
            shortcut = self.conv(f"{name}.conv_branch1", y, widths[2], 1)
            y = self.conv(f"{name}.conv_branch2a", y, widths[0], 1)
            y = masks[f"{name}.0"] * F.relu(self.norm(f"{name}.bn_branch2b1", y))
            y = self.conv(f"{name}.conv_branch2b1", y, widths[1], 3, 1, 4)
            y = masks[f"{name}.1"] * F.relu(self.norm(f"{name}.bn_branch2b2", y))
            x = shortcut + self.conv(f"{name}.conv_branch2b2", y, widths[2], 1)
        return F.relu(self.norm("bn7", x))


def trained(name):
    return "conv_branch" in name and not name.startswith("b2")


net = Wide()
channels = {"b6.0": 512, "b6.1": 1024, "b7.0": 1024, "b7.1": 2048}
dropped = {name: (uniform(name, (2, n, 1, 1)) >= -0.6).double() * 1.25 for name, n in channels.items()}
for case, masks in (("resnet38d", dict.fromkeys(channels, 1.0)), ("resnet38d.dropout", dropped)):
    feat = net.forward(image, masks)
    keep(case, feat, {name: value for name, value in net.p.items() if trained(name)})

golden = {name: value.float().contiguous() for name, value in golden.items()}
golden["shapes"] = torch.tensor(list(json.dumps(shapes, separators=(",", ":")).encode()), dtype=torch.uint8)
save_file(golden, out)
print(len(golden), "tensors")
