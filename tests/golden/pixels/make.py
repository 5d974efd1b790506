"""Makes what tests/it/pixels.rs compares with: `python3 tests/golden/pixels/make.py` in a venv with Pillow 12, numpy,
torch, torchvision and safetensors. Files are small; what Pillow makes of them is kept as digests (FNV-1a of 64 bits)."""
import io, json, pathlib, random
import numpy as np
from PIL import Image, ImageFilter

here = pathlib.Path(__file__).parent
files = here / "files"
files.mkdir(exist_ok=True)


def digest(values):
    number = 0xCBF29CE484222325
    for byte in np.ascontiguousarray(values, dtype=np.uint8).tobytes():
        number = ((number ^ byte) * 0x100000001B3) & (2**64 - 1)
    return f"{number:016x}"


def picture(height, width, seed):
    """Smooth colours with an edge and some noise: neither chroma nor luma is flat."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(3))
    values = np.asarray(noise).astype(float)
    values = (values - values.mean()) * 6 + 128
    values[height // 3 :, width // 2 :] *= (0.3, 1.1, 0.8)
    return Image.fromarray((values + rng.normal(0, 6, values.shape)).clip(0, 255).astype(np.uint8))


def described(path):
    image = Image.open(path)
    values = np.asarray(image.convert("RGB"))
    return {"file": path.name, "height": values.shape[0], "width": values.shape[1], "rgb": digest(values)}


def save(name, image, **options):
    image.save(files / name, **options)
    return described(files / name)


decoded = []
Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5).save(here / "4x4.jpg")
for i, (name, options) in enumerate({
    "444": {"subsampling": 0}, "422": {"subsampling": 1}, "420": {"subsampling": 2}, "440": {"subsampling": "4:4:0"},
    "411": {"subsampling": "4:1:1"}, "420_progressive": {"subsampling": 2, "progressive": True},
    "444_progressive": {"subsampling": 0, "progressive": True}, "restart": {"subsampling": 2, "restart_marker_blocks": 3},
    "optimised": {"subsampling": 2, "optimize": True}, "worst": {"subsampling": 2, "quality": 5},
    "best": {"subsampling": 0, "quality": 100}, "rgb": {"keep_rgb": True},
}.items()):
    try:
        decoded.append(save(f"{name}.jpg", picture(41 + i, 53 + 2 * i, i), **{"quality": 85, **options}))
    except (TypeError, ValueError, OSError) as error:
        print(f"{name}: left out, {error}")
decoded.append(save("grey.jpg", picture(33, 47, 20).convert("L"), quality=80))
decoded.append(save("grey_progressive.jpg", picture(33, 47, 21).convert("L"), quality=80, progressive=True))
decoded.append(save("cmyk.jpg", picture(40, 50, 22).convert("CMYK"), quality=85))
for side in [(1, 1), (1, 17), (16, 1), (7, 8)]:
    decoded.append(save(f"{side[0]}x{side[1]}.jpg", picture(*side, 23), subsampling=2))
# Bytes behind the end, with a start of scan among them, belong to no image.
(files / "tail.jpg").write_bytes((files / "420.jpg").read_bytes() + b"\xff\xda tail \xff\xd8\xff\xda")
decoded.append(described(files / "tail.jpg"))
base = picture(29, 37, 30)
half = Image.fromarray((np.indices((29, 37))[1] * 7 % 256).astype(np.uint8))
rgba = base.copy()
rgba.putalpha(half)
for name, image, options in [
    ("rgb", base, {}), ("rgba", rgba, {}), ("grey", base.convert("L"), {}), ("grey_alpha", rgba.convert("LA"), {}),
    ("one_bit", base.convert("1"), {}), ("palette", base.quantize(64), {}), ("palette_2_bits", base.quantize(4), {}),
    ("palette_transparent", base.quantize(16), {"transparency": 0}), ("interlaced", base, {}),
]:
    decoded.append(save(f"{name}.png", image, **options))
turned = []
for number in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = number
    name = f"turned_{number}.jpg"
    picture(11, 19, 40).save(files / name, quality=90, exif=exif)
    from PIL import ImageOps
    seen = np.asarray(ImageOps.exif_transpose(Image.open(files / name)).convert("RGB"))
    turned.append({"file": name, "height": seen.shape[0], "width": seen.shape[1], "rgb": digest(seen)})
exif = Image.Exif()
exif[0x0112] = 6
picture(11, 19, 41).save(files / "turned_6.png", exif=exif)
seen = np.asarray(ImageOps.exif_transpose(Image.open(files / "turned_6.png")).convert("RGB"))
turned.append({"file": "turned_6.png", "height": seen.shape[0], "width": seen.shape[1], "rgb": digest(seen)})

random.seed(5)
source = np.asarray(picture(75, 100, 50))
Image.fromarray(source).save(files / "source.png")
resized = []
for i in range(200):
    part = [random.randint(1, 75), random.randint(1, 100)]
    to = [random.randint(1, 220), random.randint(1, 220)]
    image = Image.fromarray(source[: part[0], : part[1]])
    row = {"part": part, "to": to}
    for name, filter in [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)]:
        row[name] = digest(np.asarray(image.resize((to[1], to[0]), filter)))
    resized.append(row)

# A training crop of the authors' transform (voc12/dataloader.py) for fixed numbers, before it is normalised.
import torch
from torchvision.transforms import functional as F
crops = []
for i in range(40):
    steps = [[0, random.uniform(0.6, 1.4)], [1, random.uniform(0.6, 1.4)], [2, random.uniform(0.6, 1.4)],
             [3, random.uniform(-0.1, 0.1)]]
    steps = [[which, float(np.float32(amount))] for which, amount in steps]
    random.shuffle(steps)
    resized_to = [random.randint(40, 160), random.randint(40, 160)]
    crop = random.randint(20, 40)
    offset = [random.randint(0, resized_to[0] - crop), random.randint(0, resized_to[1] - crop)]
    flip, grey = random.random() < 0.5, i % 10 == 0
    image = Image.fromarray(source).resize((resized_to[1], resized_to[0]), Image.BICUBIC)
    if flip:
        image = F.hflip(image)
    for which, amount in steps:
        image = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue][which](image, amount)
    if grey:
        image = F.to_grayscale(image, num_output_channels=3)
    values = np.asarray(image)[offset[0] : offset[0] + crop, offset[1] : offset[1] + crop]
    crops.append({"resized": resized_to, "flip": flip, "crop": crop, "offset": offset, "steps": steps, "grey": grey,
                  "rgb": digest(values)})
rows = {"decoded": decoded, "turned": turned, "resized": resized, "crops": crops}
text = ",\n".join(f'"{key}": [\n' + ",\n".join(json.dumps(row) for row in value) + "\n]" for key, value in rows.items())
(here / "golden.json").write_text("{\n" + text + "\n}\n")
