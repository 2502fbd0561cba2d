"""Tasks of notebook 09: ten checks and repairs of a report that trained a VQ-VAE and a prior."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize, rotate

from ...vqvae import IMAGENET_MEAN, IMAGENET_STD
from ..exercises import NotAttempted, Wrong, add_quiz, expect, task

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))


@task(
    "09",
    given='''
    def network_parameters(channels, batch_norms, kernel=4):
        """Trainable parameters of len(channels) - 1 convolutions with bias, kernel x kernel, with
        these numbers of channels in and out; a BatchNorm follows each of the first
        `batch_norms` convolutions."""
        ...
    ''',
    solution='''
    def network_parameters(channels, batch_norms, kernel=4):
        """Trainable parameters of len(channels) - 1 convolutions with bias, kernel x kernel, with
        these numbers of channels in and out; a BatchNorm follows each of the first
        `batch_norms` convolutions."""
        total = 0
        for layer, (c_in, c_out) in enumerate(zip(channels, channels[1:])):
            total += kernel * kernel * c_in * c_out + c_out
            if layer < batch_norms:
                total += 2 * c_out
        return total
    ''',
    hints=(
        "Each output channel of a convolution has one kernel for each input channel, and one bias.",
        "A BatchNorm has two trainable numbers for each channel, scale and shift. Its running mean "
        "and variance are not trained.",
        "For one layer: kernel * kernel * c_in * c_out + c_out, and 2 * c_out for its BatchNorm.",
    ),
)
def network_parameters(answer):
    for length in (3, 4, 5):
        channels = (2 + torch.randperm(40)[:length]).tolist()
        channels[-1] += 200  # so that no two of the mistakes below give the same number
        norms, kernel = length - 2, int(torch.randint(2, 6, ()))
        pairs = list(pairwise(channels))
        weights = sum(kernel**2 * c_in * c_out for c_in, c_out in pairs)
        biases, scales = sum(channels[1:]), sum(channels[1 : norms + 1])
        result = answer(channels, norms, kernel)
        if result is None or result is Ellipsis:
            raise NotAttempted
        found = {
            weights + 2 * scales: "The biases are missing: each convolution has one per channel "
            "out.",
            weights + biases: "The BatchNorms are missing: each has a scale and a shift per "
            "channel.",
            weights + biases + scales: "A BatchNorm has two parameters per channel, not one.",
            weights + biases + 4 * scales: "Running mean and variance are not trained, so they do "
            "not count.",
            weights + biases + 2 * sum(channels[1:]): "Only the first `batch_norms` convolutions "
            "have a BatchNorm.",
        }
        expected = weights + biases + 2 * scales
        if result != expected and result in found:
            raise Wrong(found[result])
        case = f"channels {channels}, {norms} BatchNorms, kernel {kernel}"
        expect(result, expected, case, "Count one layer by hand: weights, biases, BatchNorm.")


@task(
    "09",
    given='''
    def prepare(image, size):
        """A PIL image of any shape -> normalized target, float32 (3, size, size), in which
        circles are circles. No border is added."""
        from torchvision import transforms

        steps = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.Normalize(vqlib.vqvae.IMAGENET_MEAN, vqlib.vqvae.IMAGENET_STD),
                transforms.ToTensor(),
            ]
        )
        return steps(image)
    ''',
    solution='''
    def prepare(image, size):
        """A PIL image of any shape -> normalized target, float32 (3, size, size), in which
        circles are circles. No border is added."""
        from torchvision import transforms

        steps = transforms.Compose(
            [
                transforms.Resize(size),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
                transforms.Normalize(vqlib.vqvae.IMAGENET_MEAN, vqlib.vqvae.IMAGENET_STD),
            ]
        )
        return steps(image)
    ''',
    hints=(
        "There are two faults. The error message names the first: what does Normalize receive?",
        "For the second, read the documentation of Resize: what is the difference between "
        "Resize(size) and Resize((size, size))?",
        "After Resize(size) the shorter side has `size` pixels. Cut the square from the middle "
        "with CenterCrop(size).",
    ),
)
def prepare(answer):
    size = int(torch.randint(20, 40, ()))
    for width, height in ((4 * size, 2 * size), (2 * size, 3 * size), (2 * size, 2 * size)):
        image = _ramps(width, height)
        pixels = pil_to_tensor(center_crop(resize(image, size), [size, size])).float() / 255
        squashed = pil_to_tensor(resize(image, [size, size])).float() / 255
        try:
            result = answer(image, size)
        except TypeError as error:
            if "Tensor Image" in str(error):
                raise Wrong("Normalize needs a tensor, but it receives a PIL image.") from error
            raise
        case, expected = f"a photograph of {width} x {height} pixels", (pixels - MEAN) / STD
        if isinstance(result, Tensor) and result.shape == expected.shape:
            if torch.allclose(result, pixels, atol=0.05):
                raise Wrong("These are the pixels in [0, 1]: the normalization is missing.")
            others = (squashed - MEAN) / STD
            if width != height and torch.allclose(result, others, atol=0.1):
                raise Wrong(
                    f"{case.capitalize()} is squashed: the whole width is still visible, so a "
                    "circle becomes an ellipse."
                )
        idea = "The shorter side is resized to `size`, and the square in the middle is kept."
        expect(result, expected, case, idea, atol=0.15)


def _ramps(width: int, height: int) -> Image.Image:
    """Brightness rises from left to right in red, from top to bottom in green."""
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    red, green = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 90)], -1).astype(np.uint8))


@task(
    "09",
    given='''
    def rotated_target(image, degrees):
        """Pixels in [0, 1], (3, S, S) -> the image rotated by an angle, as a normalized target.
        A position that has no pixel gets the target value 0 in all three channels."""
        from torchvision.transforms.functional import rotate

        mean = torch.tensor(vqlib.vqvae.IMAGENET_MEAN).view(3, 1, 1)
        std = torch.tensor(vqlib.vqvae.IMAGENET_STD).view(3, 1, 1)
        return (rotate(image, degrees) - mean) / std
    ''',
    solution='''
    def rotated_target(image, degrees):
        """Pixels in [0, 1], (3, S, S) -> the image rotated by an angle, as a normalized target.
        A position that has no pixel gets the target value 0 in all three channels."""
        from torchvision.transforms.functional import rotate

        mean = torch.tensor(vqlib.vqvae.IMAGENET_MEAN).view(3, 1, 1)
        std = torch.tensor(vqlib.vqvae.IMAGENET_STD).view(3, 1, 1)
        return rotate((image - mean) / std, degrees)
    ''',
    hints=(
        "`rotate` fills what has no pixel with 0. Which target value does this 0 become here?",
        "There are two ways: another order of the two steps, or another value for `fill`.",
        "A 0 that is filled in after the normalization stays 0.",
    ),
)
def rotated_target(answer):
    size, degrees = int(torch.randint(30, 50, ())), float(torch.randint(10, 31, ()))
    image = 0.3 + 0.4 * torch.rand(3, size, size)
    expected, outside = rotate((image - MEAN) / STD, degrees), rotate(image, degrees) == 0
    case = f"an image of {size} x {size} pixels, rotated by {degrees:.0f} degrees"
    result = answer(image, degrees)
    if isinstance(result, Tensor) and result.shape == expected.shape:
        corners = result[outside].view(3, -1)
        if torch.allclose(corners, (-MEAN / STD).flatten(1).expand_as(corners), atol=1e-3):
            raise Wrong(
                f"The corners are {corners.min():.1f}: black pixels, normalized. No sigmoid can "
                "produce this value."
            )
        if corners.std(1).max() < 1e-3 and corners.abs().max() > 1e-3:
            values = ", ".join(f"{value:.2f}" for value in corners[:, 0].tolist())
            raise Wrong(f"The corners have the values {values}, not 0: the fill has a color.")
        if torch.allclose(result, (image - MEAN) / STD, atol=1e-4):
            raise Wrong("The image is not rotated.")
    idea = "Look at the corners and at the middle separately."
    expect(result, expected, case, idea, atol=1e-3)


@task(
    "09",
    given='''
    def loss_lower_bound(images, mean, std):
        """Pixels in [0, 1], (B, 3, H, W) -> the lowest MSE, a float, that any decoder with a
        sigmoid at its end can have against the normalized images. mean, std: (3, 1, 1)."""
        ...
    ''',
    solution='''
    def loss_lower_bound(images, mean, std):
        """Pixels in [0, 1], (B, 3, H, W) -> the lowest MSE, a float, that any decoder with a
        sigmoid at its end can have against the normalized images. mean, std: (3, 1, 1)."""
        target = (images - mean) / std
        best = target.clamp(0, 1)
        return F.mse_loss(best, target).item()
    ''',
    hints=(
        "The MSE is a mean over single numbers, so you may look for the best output for one number "
        "at a time.",
        "For the target 0.3 the best output is 0.3. Which one is it for -2, and for 1.7?",
        "The best output is the target, clamped to the range of the sigmoid.",
    ),
)
def loss_lower_bound(answer):
    for count in (3, 5):
        images = torch.rand(count, 3, 8, 8)
        mean, std = 0.3 + 0.3 * torch.rand(3, 1, 1), 0.15 + 0.1 * torch.rand(3, 1, 1)
        target = (images - mean) / std
        best = target.clamp(0, 1)
        expected = F.mse_loss(best, target)
        result = answer(images, mean, std)
        if result is None or result is Ellipsis:
            raise NotAttempted
        value = float(result)
        if isinstance(result, Tensor) and math.isclose(value, float(expected), rel_tol=1e-4):
            raise Wrong("The value is right, but it is a tensor. Return a float: use .item().")
        single = target.mean(0).clamp(0, 1).expand_as(target)
        found = {
            "This is 0 for every image: clamp the target, not the pixels.": F.mse_loss(
                images.clamp(0, 1), images
            ),
            "This is the loss of an output of 0 everywhere.": target.square().mean(),
            "This is a sum. The MSE is the mean over all numbers.": (best - target).square().sum(),
            "This is the error in pixels. The report's loss is taken on normalized values.": (
                ((best - target) * std).square().mean()
            ),
            "A sigmoid lies in [0, 1]. This is the bound for outputs in [-1, 1], as of tanh.": (
                F.mse_loss(target.clamp(-1, 1), target)
            ),
            "The output may be a different one for each image. This is the loss of one image for "
            "all inputs.": F.mse_loss(single, target),
            "This is the error of the pixels themselves as output. A sigmoid can do better.": (
                F.mse_loss(images, target)
            ),
        }
        for message, other in found.items():
            if math.isclose(value, float(other), rel_tol=1e-5, abs_tol=1e-7):
                raise Wrong(message)
        case = f"{count} random images"
        expect(value, float(expected), case, "Which output is best for a single target value?")


@task(
    "09",
    given='''
    def encode_images(encoder, images, batch_size):
        """Features of images (N, 3, H, W), computed in batches. The features of an image do not
        depend on the other images. The encoder is in the same mode, train() or eval(), as before,
        and no statistics are updated."""
        with torch.no_grad():
            return torch.cat([encoder(batch) for batch in images.split(batch_size)])
    ''',
    solution='''
    def encode_images(encoder, images, batch_size):
        """Features of images (N, 3, H, W), computed in batches. The features of an image do not
        depend on the other images. The encoder is in the same mode, train() or eval(), as before,
        and no statistics are updated."""
        was_training = encoder.training
        encoder.eval()
        with torch.no_grad():
            features = torch.cat([encoder(batch) for batch in images.split(batch_size)])
        encoder.train(was_training)
        return features
    ''',
    hints=(
        "Which layer of the encoder computes something over the whole batch?",
        "In train() a BatchNorm uses the statistics of the batch and updates its running ones. In "
        "eval() it does neither.",
        "Remember `encoder.training` first, and give it back with `encoder.train(...)` at the end.",
    ),
)
def encode_images(answer):
    channels = int(torch.randint(4, 9, ()))
    encoder = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())
    nn.init.uniform_(encoder[1].running_mean, -1, 1)
    for training in (True, False):
        encoder.train(training)
        images = torch.rand(6, 3, 8, 8)
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        with torch.no_grad():
            expected = encoder.eval()(images)
        encoder.train(training)
        result = answer(encoder, images, 4)
        if result is None or result is Ellipsis:
            raise NotAttempted
        if any(not torch.equal(before[key], value) for key, value in encoder.state_dict().items()):
            raise Wrong(
                "The encoder was changed: in train() a BatchNorm updates its running statistics, "
                "even under no_grad()."
            )
        if result.requires_grad:
            raise Wrong("The features keep the graph of their computation: it needs no gradient.")
        case = f"an encoder in {'train' if training else 'eval'}()"
        idea = "An image must have the same features alone and in a batch."
        expect(result, expected, case, idea)
        if encoder.training != training:
            raise Wrong(
                f"The encoder was in {'train' if training else 'eval'}() before and is in "
                f"{'train' if encoder.training else 'eval'}() afterwards."
            )


@task(
    "09",
    given='''
    def split_images(lesions, test_fraction):
        """lesions: int64 (N,), the lesion that each image shows -> indices of the training images
        and of the test images. A lesion is on one side only, and every image on one.
        test_fraction: the share of the lesions (not of the images) in the test set."""
        order = torch.randperm(len(lesions))
        num_test = round(test_fraction * len(lesions))
        return order[num_test:], order[:num_test]
    ''',
    solution='''
    def split_images(lesions, test_fraction):
        """lesions: int64 (N,), the lesion that each image shows -> indices of the training images
        and of the test images. A lesion is on one side only, and every image on one.
        test_fraction: the share of the lesions (not of the images) in the test set."""
        names = lesions.unique()
        order = torch.randperm(len(names))
        test_lesions = names[order[: round(test_fraction * len(names))]]
        is_test = torch.isin(lesions, test_lesions)
        return torch.where(~is_test)[0], torch.where(is_test)[0]
    ''',
    hints=(
        "What should be shuffled: images, or lesions?",
        "`lesions.unique()` has each lesion once. Choose the lesions of the test set first.",
        "`torch.isin(lesions, test_lesions)` says for each image whether its lesion was chosen.",
    ),
    hides=("vqlib.data.ImageDataset.split",),
)
def split_images(answer):
    lesions = torch.randint(50, 400, (60,)).unique()
    lesions = lesions.repeat_interleave(torch.randint(1, 6, (len(lesions),)))
    lesions = lesions[torch.randperm(len(lesions))]
    result = answer(lesions, 0.3)
    if result is None or result is Ellipsis:
        raise NotAttempted
    train, test = (torch.as_tensor(part) for part in result)
    if train.dtype == torch.bool:
        raise Wrong("Return the indices of the images, not masks.")
    both = set(lesions[train].tolist()) & set(lesions[test].tolist())
    if both:
        raise Wrong(
            f"{len(both)} lesions are in both sets, because the images were shuffled one by one."
        )
    everything = torch.cat([train, test]).sort().values
    if not torch.equal(everything, torch.arange(len(lesions))):
        missing = len(lesions) - len(everything.unique())
        raise Wrong(f"{missing} of {len(lesions)} images are in no set, or some are there twice.")
    share = len(lesions[test].unique()) / len(lesions.unique())
    if not 0.2 < share < 0.4:
        raise Wrong(f"{share:.0%} of the lesions are in the test set, not 30 %.")
    again = torch.as_tensor(answer(lesions, 0.3)[1])
    if len(again) == len(test) and torch.equal(again.sort().values, test.sort().values):
        raise Wrong("The split is the same every time: choose the lesions at random.")


@task(
    "09",
    given='''
    def prior_loss(logits, codes, codebook):
        """Loss of a prior: logits (*, K), true codes, int64 (*), codebook (K, D) -> scalar, for
        any shape * of the codes."""
        predicted = logits.softmax(-1) @ codebook
        return F.mse_loss(predicted, codebook[codes])
    ''',
    solution='''
    def prior_loss(logits, codes, codebook):
        """Loss of a prior: logits (*, K), true codes, int64 (*), codebook (K, D) -> scalar, for
        any shape * of the codes."""
        return F.cross_entropy(logits.flatten(0, -2), codes.flatten())
    ''',
    hints=(
        "Only the probability that the prior gives to the code that did come should count.",
        "Maximum likelihood: the mean of -log p(true code). It does not need the codebook.",
        "`F.cross_entropy` wants logits (N, K), before any softmax, and codes (N,): flatten both.",
    ),
)
def prior_loss(answer):
    for shape in ((7,), (2, 3, 3, 4)):
        k, d = int(torch.randint(5, 9, ())), 3
        logits, codes = 2 * torch.randn(*shape, k), torch.randint(k, shape)
        codebook = torch.randn(k, d)
        nll = -logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
        expected = nll.mean()
        try:
            result = answer(logits, codes, codebook)
        except RuntimeError as error:
            if "Expected target size" in str(error):
                raise Wrong(
                    f"For logits of shape {(*shape, k)}: F.cross_entropy looks for the K logits in "
                    "dimension 1. Move K to dimension 1, or flatten all other dimensions."
                ) from error
            raise
        if isinstance(result, Tensor):
            found = {
                "cross_entropy applies the softmax itself: give it the logits.": F.cross_entropy(
                    logits.softmax(-1).flatten(0, -2), codes.flatten()
                ),
                "This is the sum over all codes. Take the mean, so that the loss does not depend "
                "on their number.": nll.sum(),
                "This is still a squared error: of the probabilities.": F.mse_loss(
                    logits.softmax(-1), F.one_hot(codes, k).float()
                ),
                "This is still a squared error: of vectors. Its minimum is reached by every "
                "distribution with the right mean.": F.mse_loss(
                    logits.softmax(-1) @ codebook, codebook[codes]
                ),
                "The sign is wrong: this is the log-likelihood, which training would "
                "minimize.": -expected,
            }
            for message, other in found.items():
                if result.shape == other.shape and torch.allclose(result, other, rtol=1e-4):
                    raise Wrong(message)
        case = f"logits of shape {(*shape, k)}"
        expect(result, expected, case, "Compute -log p of the true code for one position by hand.")


@task(
    "09",
    given='''
    class CodeHead(nn.Module):
        """The last layer of a prior: features (B, C, h, w) -> logits (B, h, w, slots, K)."""

        def __init__(self, channels, slots, num_embeddings):
            super().__init__()
            ...

        def forward(self, x):
            logits = ...
            return logits
    ''',
    solution='''
    class CodeHead(nn.Module):
        """The last layer of a prior: features (B, C, h, w) -> logits (B, h, w, slots, K)."""

        def __init__(self, channels, slots, num_embeddings):
            super().__init__()
            self.slots = slots
            self.out = nn.Conv2d(channels, slots * num_embeddings, kernel_size=1)

        def forward(self, x):
            return self.out(x).movedim(1, -1).unflatten(-1, (self.slots, -1))
    ''',
    hints=(
        "How many numbers does the layer put out for a position, and how many does a distribution "
        "over all codes of all slots need?",
        "The number of coordinates of a vector does not matter: a distribution has one probability "
        "for each of the `num_embeddings` codes, in each slot.",
        "The positions must stay apart: use nn.Conv2d with kernel_size=1, move its channels last "
        "with movedim(1, -1), then unflatten them into slots and codes. No softmax.",
    ),
)
def CodeHead(answer):
    channels, slots, k = 6, 3, int(torch.randint(20, 30, ()))
    head, x = answer(channels, slots, k), torch.randn(2, channels, 3, 5)
    logits = head(x)
    if logits is None or logits is Ellipsis:
        raise NotAttempted
    case = f"{slots} slots with {k} codes each"
    if logits.shape != (2, 3, 5, slots, k):
        raise Wrong(
            f"For {case} the shape should be {(2, 3, 5, slots, k)}, not {tuple(logits.shape)}: the "
            "prior needs one logit for each code of each slot."
        )
    changed = x.clone()
    changed[:, :, 1, 2] += 1
    moved = (head(changed) - logits).abs() > 1e-7
    at_position = moved[:, 1, 2].clone()
    moved[:, 1, 2] = False
    if moved.any():
        raise Wrong(
            "A feature changes the logits of another position: either the channels were not moved "
            "last before the reshape, or the kernel is larger than 1 x 1."
        )
    if not at_position.any(0).all():
        never = int((~at_position.any(0)).sum())
        raise Wrong(f"{never} of {slots * k} logits of a position never change with the features.")
    if torch.allclose(logits[..., 0, :], logits[..., 1, :]):
        raise Wrong("All slots have the same distribution, but they have different codes.")
    if torch.allclose(logits.sum(-1), torch.ones(()), atol=1e-4):
        raise Wrong("These are probabilities. Cross-entropy and sampling expect logits.")


@task(
    "09",
    given='''
    def sample_codes(prior, n, shape):
        """n grids of codes, int64 (n, h, w, slots), shape = (h, w, slots), in raster order, slot
        after slot. prior: codes (n, h, w, slots) -> logits (n, h, w, slots, K), each given all
        earlier codes."""
        codes = torch.zeros(n, *shape, dtype=torch.long)
        sampled = torch.zeros_like(codes)
        for row, column, slot in np.ndindex(shape):
            p = prior(codes)[:, row, column, slot].softmax(-1)
            sampled[:, row, column, slot] = torch.multinomial(p, 1)[:, 0]
        return sampled
    ''',
    solution='''
    def sample_codes(prior, n, shape):
        """n grids of codes, int64 (n, h, w, slots), shape = (h, w, slots), in raster order, slot
        after slot. prior: codes (n, h, w, slots) -> logits (n, h, w, slots, K), each given all
        earlier codes."""
        codes = torch.zeros(n, *shape, dtype=torch.long)
        for row, column, slot in np.ndindex(shape):
            p = prior(codes)[:, row, column, slot].softmax(-1)
            codes[:, row, column, slot] = torch.multinomial(p, 1)[:, 0]
        return codes
    ''',
    hints=(
        "What does the prior see at the last position, and what should it see?",
        "An autoregressive model predicts each code from the codes that were sampled before it.",
        "The sampled code must be written into the grid that the prior receives next.",
    ),
    hides=("vqlib.sampling.sample",),
)
def sample_codes(answer):
    k, shape = 5, (2, 3, 2)
    num = int(np.prod(shape))

    def counts_on(codes):
        """Each code is the one before it plus 1, modulo K; the first code is uniform."""
        before = F.pad(codes.flatten(1), (1, 0))[:, :num]
        logits = 40.0 * F.one_hot((before + 1) % k, k).float()
        logits[:, 0] = 0
        return logits.view(len(codes), *shape, k)

    case = "a prior whose next code is always the last one + 1 (mod 5)"
    codes = answer(counts_on, 64, shape)
    if codes is None or codes is Ellipsis:
        raise NotAttempted
    if not isinstance(codes, Tensor) or codes.shape != (64, *shape):
        raise Wrong(f"The result should be a tensor of shape {(64, *shape)}.")
    if codes.is_floating_point():
        raise Wrong(f"Codes are integers, int64, not {codes.dtype}.")
    flat = codes.flatten(1)
    if len(flat[:, 0].unique()) == 1:
        raise Wrong(
            "The first code is the same in all 64 grids, although all codes are equally probable: "
            "sample it, do not take the most probable one."
        )
    right = flat[:, 1:] == (flat[:, :-1] + 1) % k
    if right.all():
        return
    steps = torch.arange(1, num)
    same_slot = right[:, steps % shape[2] != 0].all()
    if right[:, steps % shape[2] == 0].all() and not same_slot:
        raise Wrong(
            f"For {case}, the slots of a position do not follow each other: all of them were "
            "sampled from one pass. Write each code back before the next."
        )
    if (codes.movedim(-1, 1).flatten(1).diff() % k == 1).all():
        raise Wrong("The order is wrong: the slots of a position come before the next position.")
    raise Wrong(
        f"For {case}, {right.float().mean():.0%} of the codes follow their predecessor. The prior "
        "must see the codes that were sampled before."
    )


@task(
    "09",
    given='''
    def vectors_of_codes(codes, codebook):
        """Codes, int64 (B, h, w, slots), and a codebook (K, D) -> the decoder's input, float
        (B, slots * D, h, w): channels slot * D to (slot + 1) * D - 1 hold the slot's vector."""
        b, h, w, _ = codes.shape
        one_hot = F.one_hot(codes.reshape(-1), len(codebook)).float()
        return (one_hot @ codebook).view(b, -1, h, w)
    ''',
    solution='''
    def vectors_of_codes(codes, codebook):
        """Codes, int64 (B, h, w, slots), and a codebook (K, D) -> the decoder's input, float
        (B, slots * D, h, w): channels slot * D to (slot + 1) * D - 1 hold the slot's vector."""
        b, h, w, _ = codes.shape
        return codebook[codes].view(b, h, w, -1).permute(0, 3, 1, 2)
    ''',
    hints=(
        "Write down the shape of `one_hot @ codebook`, and which codes its first rows belong to.",
        "The vectors lie in the order image, row, column, slot. First give them the shape "
        "(b, h, w, slots * D): no number has to move for this.",
        "Then move the last axis to the second place: permute(0, 3, 1, 2).",
    ),
    hides=("vqlib.quantizer.VectorQuantizer.quantize",),
)
def vectors_of_codes(answer):
    for h, w in ((3, 3), (2, 5)):
        codes, codebook = torch.randint(7, (2, h, w, 3)), torch.randn(7, 4)
        vectors = codebook[codes]  # (B, h, w, slots, D)
        expected = vectors.flatten(3).permute(0, 3, 1, 2)
        result = answer(codes, codebook)
        if isinstance(result, Tensor) and result.shape == expected.shape:
            found = {
                "The numbers are right, but they stand at wrong positions: each vector is spread "
                "over the positions of a few channels.": vectors.reshape(expected.shape),
                "Rows and columns are exchanged.": expected.transpose(2, 3).reshape(expected.shape),
                "The channels of the slots are interleaved: the slot's vector must stay in "
                "one piece.": vectors.transpose(3, 4).flatten(3).permute(0, 3, 1, 2),
            }
            for message, other in found.items():
                if torch.equal(result, other) and not torch.equal(other, expected):
                    raise Wrong(message)
        case = f"codes of shape {tuple(codes.shape)}"
        expect(result, expected, case, "Follow the vector of one code through each step.")


add_quiz(
    "09.1",
    "564 batches of 16 images an epoch. What fits?",
    {
        "all 10,015 images of HAM10000": "No. They would make 626 batches.",
        "about 90 % of the images of HAM10000": "Right: between 9,009 and 9,024 images, and 90 % "
        "of 10,015 are 9,013.5. It fits, but it does not prove where the images are from.",
        "a split by lesion, and no other": "The count alone does not show this.",
    },
)


add_quiz(
    "09.2",
    "Judge each line before you open its reply. Which of the seven is right as it stands?",
    {
        "(1) the network's output at a position": "Wrong. Task 9 is about this line.",
        "(2) softmax over the output": "Wrong. It is taken over channels, and a channel is a "
        "coordinate of a vector: not a logit.",
        "(3) a sample from these probabilities": "Wrong. The number of a channel is used as a "
        "code, and codes 256 to 511 cannot occur.",
        "(4) rounding": "Not needed: the samples are integers.",
        "(5) each index four times": "Our step: the notebook had to add one, because the "
        "report's 64 samples for an image are not 256 codes.",
        "(6) one-hot vectors of the indices": "Right. With the product of line (7) this is a table "
        "lookup, which needs no 4096 x 512 matrix.",
        "(7) codebook vectors, reshaped": "The product is right, the reshape is wrong for a "
        "decoder that expects the four vectors of a position in its 256 channels.",
    },
)


add_quiz(
    "09.3",
    "All numbers are right, but they stand at wrong positions. What will the decoder show?",
    {
        "the lesion, blurred": "No. Blur would need a mean over neighboring positions.",
        "the lesion, shifted or mirrored": "No. Then whole vectors would have to stay together.",
        "nothing recognizable": "Right: a vector's 64 coordinates are spread over the 64 "
        "positions of one channel.",
    },
)


add_quiz(
    "09.4",
    "You may ask the authors for one number only. Which one decides most?",
    {
        "the training loss to more digits": "More digits would not show whether the output depends "
        "on the input.",
        "the number of codes in use on held-out images": "A good choice: it shows a collapse, "
        "and the loss does not. The EMA reading ends near its lower bound with four codes in use.",
        "the number of parameters": "It is given, and it helped to reconstruct the model. It "
        "says nothing about results.",
    },
)
