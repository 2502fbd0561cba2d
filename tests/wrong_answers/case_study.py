"""Wrong answers to the tasks of notebook 09: task -> (source, words of the reply)."""

COUNT = """\
def network_parameters(channels, batch_norms, kernel=4):
    total = 0
    for layer, (c_in, c_out) in enumerate(zip(channels, channels[1:])):
        total += {convolution}
        if {condition}:
            total += {norm} * c_out
    return total
"""
WEIGHTS = "kernel * kernel * c_in * c_out"
PREPARE = """\
def prepare(image, size):
    from torchvision import transforms

    normalize = transforms.Normalize(vqlib.vqvae.IMAGENET_MEAN, vqlib.vqvae.IMAGENET_STD)
    return transforms.Compose([{steps}])(image)
"""
ROTATED = """\
def rotated_target(image, degrees):
    from torchvision.transforms.functional import rotate

    mean = torch.tensor(vqlib.vqvae.IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(vqlib.vqvae.IMAGENET_STD).view(3, 1, 1)
    return {result}
"""
BOUND = "def loss_lower_bound(images, mean, std):\n    target = (images - mean) / std\n    return "
ENCODE = "torch.cat([encoder(batch) for batch in images.split(batch_size)])"
SPLIT = """\
def split_images(lesions, test_fraction):
    names, first = np.unique(lesions.numpy(), return_index=True)
    {lines}
"""
LOSS = "def prior_loss(logits, codes, codebook):\n    return "
HEAD = """\
class CodeHead(nn.Module):
    def __init__(self, channels, slots, num_embeddings):
        super().__init__()
        self.slots, self.k = slots, num_embeddings
        self.out = nn.Conv2d(channels, {outputs}, kernel_size=1)

    def forward(self, x):
        return {logits}
"""
SAMPLE = """\
def sample_codes(prior, n, shape):
    codes = torch.zeros(n, *shape, dtype=torch.long)
    for {loop}:
        p = prior(codes)[{index}].softmax(-1)
        codes[{index}] = {choice}
    return codes
"""
VECTORS = """\
def vectors_of_codes(codes, codebook):
    b, h, w, slots = codes.shape
    return {result}
"""

WRONG = {
    "network_parameters": [
        (
            COUNT.format(convolution=WEIGHTS, condition="layer < batch_norms", norm=2),
            "biases are missing",
        ),
        (
            COUNT.format(convolution=f"{WEIGHTS} + c_out", condition="False", norm=2),
            "BatchNorms are missing",
        ),
        (
            COUNT.format(convolution=f"{WEIGHTS} + c_out", condition="layer < batch_norms", norm=4),
            "Running mean and variance",
        ),
        (
            COUNT.format(convolution=f"{WEIGHTS} + c_out", condition="layer < batch_norms", norm=1),
            "two parameters per channel",
        ),
        (
            COUNT.format(convolution=f"{WEIGHTS} + c_in", condition="layer < batch_norms", norm=2),
            "Count one layer by hand",
        ),
    ],
    "prepare": [
        (
            PREPARE.format(
                steps="transforms.Resize((size, size)), transforms.ToTensor(), normalize"
            ),
            "is squashed",
        ),
        (
            PREPARE.format(
                steps="transforms.Resize(size), transforms.CenterCrop(size), normalize, "
                "transforms.ToTensor()"
            ),
            "receives a PIL image",
        ),
        (
            PREPARE.format(
                steps="transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()"
            ),
            "normalization is missing",
        ),
        (
            PREPARE.format(steps="transforms.CenterCrop(size), transforms.ToTensor(), normalize"),
            "shorter side",
        ),
    ],
    "rotated_target": [
        (ROTATED.format(result="(rotate(image, degrees, fill=0.0) - mean) / std"), "black pixels"),
        (ROTATED.format(result="(rotate(image, degrees, fill=0.5) - mean) / std"), "has a color"),
        (ROTATED.format(result="(image - mean) / std"), "not rotated"),
        (ROTATED.format(result="rotate((image - mean) / std, -degrees)"), "separately"),
    ],
    "loss_lower_bound": [
        (BOUND + "F.mse_loss(images.clamp(0, 1), images).item()", "clamp the target"),
        (BOUND + "(target.clamp(0, 1) - target).square().sum().item()", "a sum"),
        (BOUND + "((target.clamp(0, 1) - target) * std).square().mean().item()", "in pixels"),
        (BOUND + "F.mse_loss(target.clamp(-1, 1), target).item()", "tanh"),
        (
            BOUND + "F.mse_loss(target.mean(0).clamp(0, 1).expand_as(target), target).item()",
            "one image for all inputs",
        ),
        (BOUND + "F.mse_loss(target.sigmoid(), target).item()", "single target value"),
        (BOUND + "F.mse_loss(target.clamp(0, 1), target)", "Return a float"),
    ],
    "encode_images": [
        (
            f"def encode_images(encoder, images, batch_size):\n    return {ENCODE}.detach()",
            "running statistics",
        ),
        (
            "def encode_images(encoder, images, batch_size):\n"
            "    encoder.eval()\n"
            f"    with torch.no_grad():\n        return {ENCODE}",
            "was in train() before and is in eval()",
        ),
        (
            "def encode_images(encoder, images, batch_size):\n"
            "    encoder.eval()\n"
            f"    with torch.no_grad():\n        features = {ENCODE}\n"
            "    encoder.train()\n"
            "    return features",
            "was in eval() before and is in train()",
        ),
        (
            "def encode_images(encoder, images, batch_size):\n"
            "    was_training = encoder.training\n"
            "    encoder.eval()\n"
            f"    features = {ENCODE}\n"
            "    encoder.train(was_training)\n"
            "    return features",
            "keep the graph",
        ),
        (
            "def encode_images(encoder, images, batch_size):\n"
            f"    with torch.no_grad():\n        batch_size = 1\n        return {ENCODE}",
            "running statistics",
        ),
    ],
    "split_images": [
        (
            "def split_images(lesions, test_fraction):\n"
            "    is_test = torch.rand(len(lesions)) < test_fraction\n"
            "    return torch.where(~is_test)[0], torch.where(is_test)[0]",
            "lesions are in both sets",
        ),
        (
            SPLIT.format(
                lines="order = torch.from_numpy(first)[torch.randperm(len(first))]\n"
                "    num = round(test_fraction * len(order))\n"
                "    return order[num:], order[:num]"
            ),
            "images are in no set",
        ),
        (
            SPLIT.format(
                lines="names = torch.from_numpy(names)[: round(test_fraction * len(names))]\n"
                "    is_test = torch.isin(lesions, names)\n"
                "    return torch.where(~is_test)[0], torch.where(is_test)[0]"
            ),
            "the same every time",
        ),
        (
            SPLIT.format(
                lines="names = torch.from_numpy(names)[torch.randperm(len(names))]\n"
                "    is_test = torch.isin(lesions, names[round(test_fraction * len(names)) :])\n"
                "    return torch.where(~is_test)[0], torch.where(is_test)[0]"
            ),
            "of the lesions are in the test set",
        ),
        (
            SPLIT.format(
                lines="names = torch.from_numpy(names)[torch.randperm(len(names))]\n"
                "    is_test = torch.isin(lesions, names[: round(test_fraction * len(names))])\n"
                "    return ~is_test, is_test"
            ),
            "not masks",
        ),
    ],
    "prior_loss": [
        (
            LOSS + "F.cross_entropy(logits.softmax(-1).flatten(0, -2), codes.flatten())",
            "applies the softmax itself",
        ),
        (
            LOSS + "F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction='sum')",
            "sum over all codes",
        ),
        (
            LOSS + "F.mse_loss(logits.softmax(-1), F.one_hot(codes, logits.shape[-1]).float())",
            "of the probabilities",
        ),
        (
            LOSS + "logits.log_softmax(-1).gather(-1, codes[..., None]).mean()",
            "sign is wrong",
        ),
        (LOSS + "F.cross_entropy(logits, codes)", "Move K to dimension 1"),
        (LOSS + "((logits.softmax(-1) @ codebook - codebook[codes])**2).mean()", "right mean"),
    ],
    "CodeHead": [
        (
            HEAD.format(
                outputs="num_embeddings",
                logits="self.out(x).movedim(1, -1)[:, :, :, None].repeat(1, 1, 1, self.slots, 1)",
            ),
            "same distribution",
        ),
        (
            HEAD.format(
                outputs="slots * 4",
                logits="F.pad(self.out(x).movedim(1, -1).unflatten(-1, (self.slots, -1)), (0, "
                "self.k - self.out.out_channels // self.slots))",
            ),
            "never change with the features",
        ),
        (
            HEAD.format(
                outputs="slots * num_embeddings",
                logits="self.out(x).reshape(len(x), *x.shape[2:], self.slots, self.k)",
            ),
            "not moved last",
        ),
        (
            HEAD.format(
                outputs="slots * 64",
                logits="self.out(x).movedim(1, -1).unflatten(-1, (self.slots, -1))",
            ),
            "one logit for each code",
        ),
        (
            HEAD.format(
                outputs="slots * num_embeddings",
                logits="self.out(x).movedim(1, -1).unflatten(-1, (self.slots, -1)).softmax(-1)",
            ),
            "These are probabilities",
        ),
        (
            HEAD.format(
                outputs="slots * num_embeddings",
                logits="self.out(x).movedim(1, -1).unflatten(-1, (self.k, self.slots))",
            ),
            "the shape should be",
        ),
    ],
    "sample_codes": [
        (
            SAMPLE.format(
                loop="row, column, slot in np.ndindex(shape)",
                index=":, row, column, slot",
                choice="p.argmax(-1)",
            ),
            "do not take the most probable one",
        ),
        (
            SAMPLE.format(
                loop="row, column in np.ndindex(shape[:2])",
                index=":, row, column",
                choice="torch.multinomial(p.flatten(0, 1), 1).view(n, -1)",
            ),
            "sampled from one pass",
        ),
        (
            "def sample_codes(prior, n, shape):\n"
            "    p = prior(torch.zeros(n, *shape, dtype=torch.long)).softmax(-1)\n"
            "    return torch.multinomial(p.flatten(0, -2), 1).view(n, *shape)",
            "codes that were sampled before",
        ),
        (
            SAMPLE.format(
                loop="slot, row, column in np.ndindex(shape[2], *shape[:2])",
                index=":, row, column, slot",
                choice="torch.multinomial(p, 1)[:, 0]",
            ),
            "sampled before",
        ),
    ],
    "vectors_of_codes": [
        (VECTORS.format(result="codebook[codes].reshape(b, -1, h, w)"), "stand at wrong positions"),
        (
            VECTORS.format(result="codebook[codes].flatten(3).permute(0, 3, 2, 1)"),
            "Rows and columns",
        ),
        (
            VECTORS.format(result="codebook[codes].transpose(3, 4).flatten(3).permute(0, 3, 1, 2)"),
            "interleaved",
        ),
        (VECTORS.format(result="codebook[codes].flatten(3)"), "the shape should be"),
    ],
}
