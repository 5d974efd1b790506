"""Worker of bench.py: the public PyTorch code of SAM (segment-anything) and MobileSAM (mobilesam-mirror) from PyPI.

usage: reference.py, then one JSON object a line on stdin; each is answered by one JSON object a line on stdout:
  {"do": "load", "model": "vit_b" | "vit_t", "weights": PATH}          -> {}      .pth, .pt or .safetensors
  {"do": "encode", "image": PATH}                                      -> {"seconds"}
      SamPredictor.set_image of the decoded picture: resizing and normalising included, reading the file not
  {"do": "decode", "prompts": 64}                                      -> {"seconds"}
      a grid of points on the last encoded picture in one batch, three low-resolution masks each
  {"do": "everything", "image": PATH, "points_per_side": 32}           -> {"seconds", "masks"}
      SamAutomaticMaskGenerator.generate of the decoded picture at its defaults, the encoder included
and what common.py knows of the protocol.
"""
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "common"))
import common  # noqa: E402


class Worker:
    def load(self, model, weights):
        if model == "vit_t":
            import mobile_sam as package
        else:
            import segment_anything as package
        read = load_file if weights.endswith(".safetensors") else torch.load
        state = {k: v.float() for k, v in read(weights).items()}
        self.package, self.sam = package, package.sam_model_registry[model]()
        missing, unexpected = self.sam.load_state_dict(state, strict=False)
        self.sam.eval()  # after loading: TinyViT keeps its biases here
        unused = ("image_encoder.norm_head.", "image_encoder.head.")  # TinyViT's classifier
        wrong = [k for k in missing if not k.startswith(unused)] + unexpected
        if wrong:
            raise ValueError(f"{weights} does not fit {model}: {wrong[:5]}")
        self.predictor = package.SamPredictor(self.sam)
        return {}

    def encode(self, image):
        image = rgb(image)
        return timed(lambda: self.predictor.set_image(image))[0]

    def decode(self, prompts):
        side = int(np.ceil(np.sqrt(prompts)))
        x, y = np.arange(prompts) % side, np.arange(prompts) // side
        height, width = self.predictor.input_size
        coords = (np.stack([x, y], 1) + 0.5) / side * [width, height]
        coords, labels = torch.tensor(coords, dtype=torch.float32)[:, None], torch.ones(prompts, 1, dtype=torch.int)

        def run():
            encoder = self.sam.prompt_encoder
            sparse, dense = encoder(points=(coords, labels), boxes=None, masks=None)
            return self.sam.mask_decoder(
                image_embeddings=self.predictor.features, image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True)
        return timed(run)[0]

    def everything(self, image, points_per_side):
        image = rgb(image)
        generator = self.package.SamAutomaticMaskGenerator(self.sam, points_per_side=points_per_side)
        seconds, masks = timed(lambda: generator.generate(image))
        return seconds | {"masks": len(masks)}


def rgb(path):
    return np.array(Image.open(path).convert("RGB"))


def timed(run):
    with torch.no_grad():
        return common.timed(run)


common.serve(Worker)
