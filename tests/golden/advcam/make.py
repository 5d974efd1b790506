"""Golden numbers of AdvCAM (Lee, Kim, Yoon, CVPR 2021) from PyTorch, written from its equations: an image climbs by the
gradient of its class's score, less those of the others and less what changes where the CAM is high already.

usage: make.py RESNET50.safetensors OUT.safetensors

Needs torch, torchvision, safetensors. ResNet-50 (v1, stride 16), a head by formula, a picture by formula, both rounded to f32; all else is in f64.
"""
import sys

import torch
from safetensors.torch import load_file, save_file
from torchvision.models import resnet50

STEP, GUARD, HIGH, CHANNEL = 0.08, 7.0, 0.5, 3
weights, out = sys.argv[1:]
golden = {}
torch.set_default_dtype(torch.float64)


def wave(shape, step, size):
    n = torch.Size(shape).numel()
    return ((torch.arange(n, dtype=torch.float64) * step).sin() * size).float().view(shape)


net = resnet50(replace_stride_with_dilation=[False, False, True])
net.load_state_dict({k: v.float() for k, v in load_file(weights).items()}, strict=False)
for layer in (net.layer2, net.layer3, net.layer4):
    layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, (1, 1)
net.eval().requires_grad_(False)
feat, cam = wave((256, 2048, 1, 1), 0.61, 0.02).double(), wave((20, 256, 1, 1), 1.3, 0.1).double()


def cams(x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    return torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, feat).relu(), cam).relu()


image = (wave((1, 3, 96, 64), 0.37, 1.5) + wave((1, 3, 96, 64), 0.0013, 0.7)).double()
low, high, x, total, first = image.min(), image.max(), image, 0, None
for t in range(5):
    x = x.detach().requires_grad_()
    found = cams(x)
    of_class = found[0, CHANNEL]
    total = total + of_class.detach()
    golden[f"sum.{t}"] = total.clone()
    first = of_class.detach() if first is None else first
    scores = found[0].mean((1, 2))
    is_high = of_class.detach() / of_class.detach().max() > HIGH
    loss = 2 * scores[CHANNEL] - scores.sum() - GUARD * ((of_class - first).abs() * is_high).sum()
    grad, = torch.autograd.grad(loss, x)
    x = (x.detach() + STEP * grad / grad.abs().max()).clamp(low, high)
    print(t, float(loss.detach()), float(of_class.max()), int(is_high.sum()), float(grad.abs().max()))
save_file({name: value.float() for name, value in golden.items()}, out)
