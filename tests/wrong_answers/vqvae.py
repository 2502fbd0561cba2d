"""Wrong answers to the tasks of notebook 02: task -> (source, words of the reply)."""

ENCODER = """
def build_encoder():
    layers, channels = [], (3, 32, 64, 128, 256, 256)
    for i in range(5):
        layers.append(nn.Conv2d(channels[i], channels[i + 1], 4, stride=2, padding=PADDING))
        if i < LAST:
            layers += [NORM nn.ReLU()]
    return nn.Sequential(*layers FINAL)
"""


def encoder(padding="1", last="4", norm="nn.BatchNorm2d(channels[i + 1]),", final=""):
    pairs = {"PADDING": padding, "LAST": last, "NORM": norm, "FINAL": final}
    source = ENCODER
    for name, text in pairs.items():
        source = source.replace(name, text)
    return source


def step(*lines):
    return "def vqvae_step(model, optimizer, images):\n" + "".join(f"    {x}\n" for x in lines)


def ema(size, total, codebook):
    return (
        "def ema_update(codebook, ema_sum, cluster_size, vectors, codes, decay):\n"
        "    counts = torch.bincount(codes, minlength=len(codebook)).float()\n"
        "    sums = torch.zeros_like(codebook).index_add(0, codes, vectors)\n"
        f"    size = {size}\n    total = {total}\n    return {codebook}, total, size"
    )


SIZE = "decay * cluster_size + (1 - decay) * counts"
TOTAL = "decay * ema_sum + (1 - decay) * sums"

WRONG = {
    "squared_distances": [
        (
            "def squared_distances(features, codebook):\n"
            "    return (features.pow(2).sum(1, keepdim=True) - features @ codebook.T\n"
            "            + codebook.pow(2).sum(1))",
            "mixed term",
        ),
        (
            "def squared_distances(features, codebook):\n"
            "    return torch.cdist(features, codebook)",
            "calls torch.",
        ),
        (
            "def squared_distances(features, codebook):\n"
            "    return (features[:, None] - codebook).pow(2).sum(-1)",
            "N x K x D",
        ),
        (
            "def squared_distances(features, codebook):\n"
            "    return (features[:, None] - codebook).norm(dim=-1)",
            "no square root",
        ),
        (
            "def squared_distances(features, codebook):\n"
            "    return (features[:, None] - codebook).pow(2).mean(-1)",
            "means over the D dimensions",
        ),
        (
            "def squared_distances(features, codebook):\n"
            "    return (features.pow(2).sum(1) - 2 * codebook @ features.T).T",
            "mixed term",
        ),
        (
            "def squared_distances(features, codebook):\n    return features.mul_(0) @ codebook.T",
            "in place",
        ),
    ],
    "nearest_code": [
        (
            "def nearest_code(features, codebook, chunk=256):\n"
            "    return squared_distances(features, codebook).argmin(1)",
            "chunk x K",
        ),
        (
            "def nearest_code(features, codebook, chunk=256):\n"
            "    return squared_distances(features, codebook).argmin(0)",
            "over which dimension",
        ),
        (
            "def nearest_code(features, codebook, chunk=256):\n"
            "    return torch.cat([squared_distances(p, codebook).argmax(1)\n"
            "                      for p in features.split(chunk)])",
            "farthest",
        ),
        (
            "def nearest_code(features, codebook, chunk=256):\n"
            "    return torch.cat([squared_distances(features[i * chunk:(i + 1) * chunk], codebook)"
            ".argmin(1)\n                      for i in range(len(features) // chunk)])",
            "are missing",
        ),
        (
            "def nearest_code(features, codebook, chunk=256):\n"
            "    return vqlib.quantizer.nearest_codes(features[None], codebook[None])[0]",
            "calls vqlib.quantizer.nearest_codes",
        ),
    ],
    "to_slots": [
        (
            "def to_slots(z, slots):\n    return z.reshape(slots, -1, z.shape[1] // slots)",
            "neighboring values of one channel",
        ),
        (
            "def to_slots(z, slots):\n"
            "    return z.reshape(-1, slots, z.shape[1] // slots).transpose(0, 1)",
            "neighboring values of one channel",
        ),
        (
            "def to_slots(z, slots):\n"
            "    x = z.permute(0, 2, 3, 1).flatten(0, 2)\n"
            "    return x.reshape(len(x), -1, slots).permute(2, 0, 1)",
            "order of `slots`",
        ),
        (
            "def to_slots(z, slots):\n"
            "    x = z.permute(0, 2, 3, 1).flatten(0, 2)\n"
            "    return x.reshape(len(x), slots, -1)",
            "first dimension",
        ),
        (
            "def to_slots(z, slots):\n"
            "    x = z.permute(0, 3, 2, 1).flatten(0, 2)\n"
            "    return x.reshape(len(x), slots, -1).transpose(0, 1)",
            "Which position",
        ),
    ],
    "from_slots": [
        (
            "def from_slots(vectors, shape):\n    return vectors.reshape(shape)",
            "spread over other positions",
        ),
        (
            "def from_slots(vectors, shape):\n"
            "    b, c, h, w = shape\n"
            "    return vectors.transpose(0, 1).reshape(b, h, w, c).permute(0, 3, 2, 1)",
            "Rows and columns",
        ),
        (
            "def from_slots(vectors, shape):\n"
            "    b, c, h, w = shape\n"
            "    return vectors.reshape(b, h, w, c).permute(0, 3, 1, 2)",
            "Every number",
        ),
        (
            "def from_slots(vectors, shape):\n"
            "    b, c, h, w = shape\n"
            "    return vectors.transpose(0, 1).reshape(b, h, w, c)",
            "shape should be",
        ),
    ],
    "straight_through": [
        (
            "def straight_through(z, quantized):\n    return quantized + (z - quantized).detach()",
            "are exchanged",
        ),
        (
            "def straight_through(z, quantized):\n    return z.detach() + (quantized - z).detach()",
            "too much is detached",
        ),
        ("def straight_through(z, quantized):\n    return quantized", "gradient at z is zero"),
        (
            "def straight_through(z, quantized):\n    return z + quantized - z.detach()",
            "also goes to the codebook",
        ),
        (
            "def straight_through(z, quantized):\n    return (quantized - z).detach()",
            "must get the codebook vectors",
        ),
    ],
    "vq_losses": [
        (
            "def vq_losses(z, quantized):\n"
            "    return F.mse_loss(quantized, z), F.mse_loss(z, quantized.detach())",
            "moves both",
        ),
        (
            "def vq_losses(z, quantized):\n"
            "    first = F.mse_loss(z, quantized.detach())\n"
            "    return first, F.mse_loss(quantized, z.detach())",
            "are exchanged",
        ),
        (
            "def vq_losses(z, quantized):\n"
            "    first = F.mse_loss(quantized, z.detach(), reduction='sum')\n"
            "    return first, F.mse_loss(z, quantized.detach(), reduction='sum')",
            "sum over all elements",
        ),
        (
            "def vq_losses(z, quantized):\n"
            "    first = F.mse_loss(quantized, z.detach())\n"
            "    return first, 0.25 * F.mse_loss(z, quantized.detach())",
            "already weighted",
        ),
        (
            "def vq_losses(z, quantized):\n"
            "    loss = F.mse_loss(quantized.detach(), z)\n    return loss, loss",
            "move the same thing",
        ),
        (
            "def vq_losses(z, quantized):\n"
            "    loss = F.mse_loss(quantized, z)\n    return loss, loss",
            "moves both",
        ),
        (
            "def vq_losses(z, quantized):\n"
            "    loss = F.mse_loss(quantized.detach(), z.detach())\n    return loss, loss",
            "moves nothing",
        ),
    ],
    "ema_update": [
        (
            ema("(1 - decay) * cluster_size + decay * counts", TOTAL, "total / size[:, None]"),
            "weights are exchanged",
        ),
        (ema(SIZE, TOTAL, "total / size[:, None]"), "must be kept"),
        (ema(SIZE, TOTAL, "total / size.clamp_min(1e-5)[:, None]"), "should keep its codebook"),
        (
            ema(
                SIZE,
                "decay * ema_sum + (1 - decay) * sums / counts.clamp_min(1)[:, None]",
                "codebook",
            ),
            "not their means",
        ),
        (ema(SIZE, TOTAL, "codebook"), "divided by the new cluster size"),
        (ema("counts", TOTAL, "codebook"), "decay times the old cluster size"),
    ],
    "build_encoder": [
        (encoder(padding="0"), "padding should be (1, 1)"),
        (encoder(last="5"), "first four convolutions; 5"),
        (encoder(final=", nn.ReLU()"), "never negative"),
        (encoder(norm=""), "0 were found"),
        (
            encoder(norm="nn.ReLU(), nn.BatchNorm2d(channels[i + 1]),").replace(
                "nn.BatchNorm2d(channels[i + 1]), nn.ReLU()]", "nn.BatchNorm2d(channels[i + 1])]"
            ),
            "in this order",
        ),
        (
            encoder().replace(
                "layers += [nn.BatchNorm2d(channels[i + 1]), nn.ReLU()]",
                "layers[-1] = nn.Sequential(\n                "
                "layers[-1], nn.BatchNorm2d(channels[i + 1]), nn.ReLU())",
            ),
            "same names",
        ),
        ("def build_encoder():\n    return vqlib.Encoder()", "calls vqlib.vqvae.Encoder"),
    ],
    "vqvae_step": [
        (
            step(
                "model.train()",
                "loss = model(images).loss",
                "loss.backward()",
                "optimizer.step()",
                "return loss.item()",
            ),
            "gradients of earlier batches",
        ),
        (
            step(
                "loss = model(images).loss",
                "optimizer.zero_grad()",
                "loss.backward()",
                "optimizer.step()",
                "return loss.item()",
            ),
            "eval() mode",
        ),
        (
            step(
                "model.train()",
                "loss = model(images).loss",
                "loss.backward()",
                "optimizer.zero_grad()",
                "optimizer.step()",
                "return loss.item()",
            ),
            "does not change the weights",
        ),
        (
            step(
                "model.train()",
                "loss = model(images).reconstruction_loss",
                "optimizer.zero_grad()",
                "loss.backward()",
                "optimizer.step()",
                "return loss.item()",
            ),
            "model(images).loss",
        ),
    ],
}
