"""Worker of bench.py: a training step of S2C in PyTorch f32, a plain script written from the equations (S2C paper, section
3), with the encoder where the authors' code has it: SAM encodes each augmented crop at every step.

usage: reference.py, then one JSON object a line on stdin; each is answered by one JSON object a line on stdout:
  {"do": "load", "start": PATH, "sam": PATH, "batch": 8, "side": 256, "device": "cpu"}   -> {}
      start: ResNet-50 (v1) and head.feat.weight, head.cam.weight; sam: MobileSAM; both .safetensors; device: or cuda
  {"do": "step"}                                                        -> {"seconds", "cls", "ssc", "cpm"}
      all three losses with CPM's pseudo map, their gradients, and a step of SGD; the batch is a formula
  {"do": "ssc", "batch": 8, "side": 256, "device": "cpu"}               -> {"seconds", "ssc", "grad_norm", "grown_mib"}
      value and gradient of L_SSC alone, and how far memory rose above what was there (Linux alone)
and what common.py knows of the protocol.
"""
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "common"))
from common import memory, serve, timed  # noqa: E402

CLASSES, TEMPERATURE, TAU, DISTANCE, LR = 20, 0.5, 0.5, 20, 1e-4
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def picture(i, side):
    """Stripes, slopes and tiles, in whole numbers: (3, H, W) u8."""
    c, y, x = np.mgrid[:3, :side, :side]
    return torch.from_numpy(((x * (3 + i) // 7 + y * (5 + 2 * c) // 9 + (x // 32 + y // 32 + i) % 2 * 90) % 256))


def classes(i):
    return [i % CLASSES, (i * 7 + 3) % CLASSES] if i % 2 == 0 else [i % CLASSES]


def se_map(n, side):
    """Tiles of 32 pixels, and strips in none: (B, H, W)."""
    y, x = np.mgrid[:side, :side]
    ids = np.where(x % 32 < 3, 0, 1 + y // 32 * -(-side // 32) + x // 32)
    return torch.from_numpy(ids).long().expand(n, side, side)


class Classifier(torch.nn.Module):
    """ResNet-50 at stride 16, batch norms, conv1 and layer1 frozen; features; CAMs."""

    def __init__(self, state):
        super().__init__()
        from torchvision.models import resnet50
        net = resnet50(replace_stride_with_dilation=[False, False, True])
        net.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")}, strict=False)
        for layer in (net.layer2, net.layer3, net.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, (1, 1)
        self.stem = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        self.trunk = torch.nn.Sequential(net.layer2, net.layer3, net.layer4)
        self.feat = torch.nn.Conv2d(2048, 256, 1, bias=False)
        self.cam = torch.nn.Conv2d(256, CLASSES, 1, bias=False)
        self.feat.weight.data, self.cam.weight.data = state["head.feat.weight"], state["head.cam.weight"]
        self.stem.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.requires_grad_(False)
        self.eval()

    def forward(self, x):
        feat = self.feat(self.trunk(self.stem(x))).relu()
        return feat, self.cam(feat)


def ssc(feat, ids):
    """Section 3.2: all images at once, prototypes local to each."""
    feat = F.interpolate(feat, size=ids.shape[1:], mode="bilinear", align_corners=False)
    pixels = F.normalize(feat, dim=1).flatten(2).transpose(1, 2)  # (B, HW, D)
    ids = ids.flatten(1)
    b, n = len(ids), int(ids.max()) + 1
    count = torch.zeros(b, n).scatter_add(1, ids, torch.ones_like(ids, dtype=torch.float32))
    where = ids.unsqueeze(2).expand_as(pixels)
    sums = torch.zeros(b, n, pixels.shape[2]).scatter_add(1, where, pixels.detach())
    proto = F.normalize(sums / count.clamp(min=1).unsqueeze(2), dim=2)
    logits = pixels @ proto.transpose(1, 2) / TEMPERATURE  # (B, HW, N)
    logits = logits.masked_fill((count == 0).unsqueeze(1), -torch.inf)
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), ignore_index=0)


def peaks(cam):
    """Local maxima at or above TAU, the higher ones first, none within DISTANCE of a higher one: x, y."""
    top = F.max_pool2d(cam[None, None], 3, 1, 1)[0, 0]
    found = ((cam == top) & (cam >= TAU)).nonzero().tolist()
    kept = []
    for y, x in sorted(found, key=lambda at: (-float(cam[at[0], at[1]]), at)):
        if all(max(abs(y - v), abs(x - u)) >= DISTANCE for u, v in kept):
            kept.append((x, y))
    return kept


@torch.no_grad()
def pseudo_map(classifier, sam, crops):
    """Section 3.3: peaks of the multi-scale CAM prompt SAM, and its masks compete: 0 background, class + 1."""
    b, _, height, width = crops.shape
    mean, std = MEAN.to(crops.device), STD.to(crops.device)
    cams = 0
    for scale in (0.5, 1.0, 1.5, 2.0):
        size = (round(height * scale), round(width * scale))
        scaled = crops if scale == 1.0 else F.interpolate(crops, size=size, mode="bilinear", align_corners=True)
        cams = cams + F.interpolate(classifier(scaled)[1], size=(height, width), mode="bilinear").relu()
    cams = cams / (cams.amax((2, 3), keepdim=True) + 1e-5)
    labels = torch.zeros(b, height, width, dtype=torch.long)
    for i in range(b):
        image = ((crops[i] * std + mean) * 255)[None]
        image = F.interpolate(image, size=(1024, 1024), mode="bilinear", align_corners=True)
        embedding = sam.image_encoder(sam.preprocess(image.to(torch.uint8)))
        best = torch.full((height, width), -torch.inf)
        for c in classes(i):
            points = peaks(cams[i, c])
            if not points:
                continue
            coords = torch.tensor([points], dtype=torch.float32) * (1024 / height)
            prompts = (coords, torch.ones(1, len(points), dtype=torch.int))
            sparse, dense = sam.prompt_encoder(points=prompts, boxes=None, masks=None)
            logits, _ = sam.mask_decoder(
                image_embeddings=embedding, image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True)
            logits = F.interpolate(logits[:, 2:], size=(height, width), mode="bilinear")[0, 0]
            mask = logits > 0
            confidence = logits * (cams[i, c] * mask).sum() / mask.sum().clamp(min=1)
            wins = mask & (confidence > best)
            best = torch.where(wins, confidence, best)
            labels[i][wins] = c + 1
    return labels


def cpm(cam, present, labels):
    cam = cam.relu()
    cam = cam / (cam.amax((2, 3), keepdim=True) + 1e-5)
    cam = F.interpolate(cam, size=labels.shape[1:], mode="bilinear") * present[:, :, None, None]
    return F.cross_entropy(torch.cat([1 - cam.amax(1, keepdim=True), cam], 1), labels)


class Worker:
    def load(self, start, sam, batch, side, device):
        import mobile_sam
        torch.set_default_device(device)
        self.sam = mobile_sam.sam_model_registry["vit_t"]()
        self.sam.load_state_dict({k: v.float() for k, v in load_file(sam).items()}, strict=False)
        self.sam.to(device).eval()  # after loading: TinyViT keeps its biases here
        self.classifier = Classifier({k: v.float() for k, v in load_file(start).items()}).to(device)
        trained = {k: v for k, v in self.classifier.named_parameters() if v.requires_grad}
        head = [v for k, v in trained.items() if not k.startswith("trunk")]
        trunk = [v for k, v in trained.items() if k.startswith("trunk")]
        groups = [{"params": trunk, "lr": LR}, {"params": head, "lr": LR * 10}]
        self.sgd = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
        self.crops = torch.stack([(picture(i, side).float() / 255 - MEAN) / STD for i in range(batch)]).to(device)
        self.present = torch.zeros(batch, CLASSES)
        for i in range(batch):
            self.present[i, classes(i)] = 1
        self.ids = se_map(batch, side).to(device)
        return {}

    def step(self):
        def run():
            labels = pseudo_map(self.classifier, self.sam, self.crops)
            self.sgd.zero_grad()
            feat, cam = self.classifier(self.crops)
            terms = {"cls": F.binary_cross_entropy_with_logits(cam.mean((2, 3)), self.present),
                     "ssc": ssc(feat, self.ids), "cpm": cpm(cam, self.present, labels)}
            sum(terms.values()).backward()
            self.sgd.step()
            return {name: term.item() for name, term in terms.items()}
        seconds, terms = timed(run)
        return seconds | terms

    def ssc(self, batch, side, device):
        torch.set_default_device(device)
        grid = side // 16
        places = torch.arange(batch * 256 * grid * grid, dtype=torch.float64)
        feat = ((places * 0.37).sin() + 1.1).float().view(batch, 256, grid, grid).requires_grad_()
        ids = se_map(batch, side).contiguous().to(device)
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # VmHWM starts again
        before = memory("VmRSS")

        def run():
            loss = ssc(feat, ids)
            loss.backward()
            return loss.item()
        seconds, value = timed(run)
        grown = memory("VmHWM") - before
        return seconds | {"ssc": value, "grad_norm": feat.grad.norm().item(), "grown_mib": grown}


serve(Worker)
