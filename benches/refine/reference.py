"""The reference's side of bench-refine: pydensecrf, and the authors' evaluation in numpy. Its methods:
load {folder, images, height, width}; crf {labels, parameters, jobs, out} -> {seconds}: of all images, the marginals of the
first to `out`; sweep {thresholds} -> {seconds, mious}."""
import pathlib
import sys

import numpy as np
import pydensecrf.densecrf as dcrf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "common"))
from common import serve, timed  # noqa: E402


class Reference:
    def load(self, folder, images, height, width):
        self.size = (height, width)
        read = lambda i, of, kind: np.fromfile(pathlib.Path(folder) / f"{i}.{of}", kind)  # noqa: E731
        self.rgb = [read(i, "rgb", np.uint8).reshape(height, width, 3) for i in range(images)]
        self.masks = [read(i, "mask", np.uint8).reshape(height, width) for i in range(images)]
        self.cams = [read(i, "cam", np.float32).reshape(2, height, width) for i in range(images)]
        self.unary = {n: [-read(i, f"log{n}", np.float32).reshape(n, -1) for i in range(images)] for n in (3, 21)}
        return {}

    def field(self, image, unary, parameters):
        t, gaussian_sxy, gaussian_weight, sxy, srgb, weight = parameters
        crf = dcrf.DenseCRF2D(self.size[1], self.size[0], len(unary))
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(sxy=gaussian_sxy, compat=gaussian_weight)
        crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=weight)
        return np.array(crf.inference(t))

    def crf(self, labels, parameters, jobs, out):
        assert jobs == 1
        all_images = zip(self.rgb, self.unary[labels])
        seconds, fields = timed(lambda: [self.field(image, unary, parameters) for image, unary in all_images])
        fields[0].tofile(out)
        return seconds

    def sweep(self, thresholds):
        """A pass over all images for each threshold, and in it one over the pixels for each class and count."""
        def miou(threshold):
            hits, of_truth, of_prediction = np.zeros((3, 21))
            for cam, truth in zip(self.cams, self.masks):
                scores = np.zeros((21, *self.size), np.float32)
                scores[1:3] = cam
                scores[0] = threshold
                prediction = np.argmax(scores, axis=0)
                counted = truth < 255
                right = (prediction == truth) * counted
                for label in range(21):
                    of_prediction[label] += np.sum((prediction == label) * counted)
                    of_truth[label] += np.sum((truth == label) * counted)
                    hits[label] += np.sum((truth == label) * right)
            ious = hits / (of_truth + of_prediction - hits + 1e-10)
            return float(ious[of_truth > 0].mean())

        seconds, mious = timed(lambda: [miou(i / 100) for i in range(thresholds)])
        return seconds | {"mious": mious}


if __name__ == "__main__":
    serve(Reference)
