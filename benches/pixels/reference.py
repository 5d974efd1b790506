"""Pillow's side of `make bench-pixels`."""
import io
import pathlib
import sys

import numpy as np
from blake3 import blake3
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "common"))
from common import serve, timed  # noqa: E402


class Pillow:
    def load(self, paths):
        self.files = [pathlib.Path(path).read_bytes() for path in paths]
        self.images = [self.decoded(bytes) for bytes in self.files]
        return {}

    def decoded(self, bytes):
        return Image.open(io.BytesIO(bytes)).convert("RGB")

    def answer(self, make):
        found, images = timed(make)
        return found | {"digests": [blake3(np.asarray(image).tobytes()).hexdigest() for image in images]}

    def decode(self):
        return self.answer(lambda: [self.decoded(bytes) for bytes in self.files])

    def resize(self, longest, filter):
        def resized(image):
            most = max(image.size)
            size = [max(1, (side * longest + most // 2) // most) for side in image.size]
            return image.resize(size, Image.BICUBIC if filter == "bicubic" else Image.BILINEAR)

        return self.answer(lambda: [resized(image) for image in self.images])


serve(Pillow)
