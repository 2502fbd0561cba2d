"""Tasks of notebook 02: the quantizer, its losses, the encoder and one training step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...vqvae import Encoder, VQVAEOutput
from ..exercises import Wrong, add_quiz, expect, task


class _LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is computed."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.size = max(self.size, result.numel())
        return result


class Codebooks(nn.Module):
    """State of the quantizer that notebook 02 assembles: one codebook for each slot, its EMA, its
    initialization from data, and restarts of unused codes. The start values and the random numbers
    are those of `VectorQuantizer`.

    Args:
        num_embeddings: K.
        embedding_dim: D.
        slots: number of codebooks.
    """

    def __init__(self, num_embeddings: int = 512, embedding_dim: int = 64, slots: int = 4) -> None:
        super().__init__()
        self.num_embeddings, self.slots = num_embeddings, slots
        vectors = torch.randn(slots, num_embeddings, embedding_dim)
        self.register_buffer("codebook", vectors)
        self.register_buffer("ema_sum", vectors.clone())
        self.register_buffer("ema_cluster_size", torch.ones(slots, num_embeddings))
        self.register_buffer("steps_unused", torch.zeros(slots, num_embeddings, dtype=torch.long))
        self.register_buffer("initialized", torch.tensor(False))

    @torch.no_grad()
    def update(
        self,
        vectors: Tensor,
        codes: Tensor,
        ema_update: Callable[..., tuple[Tensor, Tensor, Tensor]],
        decay: float = 0.99,
        restart_after: int = 20,
    ) -> None:
        """One step of the EMA for each slot; codes unused for `restart_after` steps are restarted.

        Args:
            vectors: float (slots, N, D), the sub-vectors of a batch.
            codes: int64 (slots, N).
            ema_update: the function of the task of this name.
        """
        state = (self.codebook, self.ema_sum, self.ema_cluster_size)
        for s in range(self.slots):
            new = ema_update(*(old[s] for old in state), vectors[s], codes[s], decay)
            for old, value in zip(state, new, strict=True):
                old[s] = value
            self.steps_unused[s] += 1
            self.steps_unused[s, codes[s]] = 0
        self.restart(self.steps_unused >= restart_after, vectors)

    @torch.no_grad()
    def restart(self, which: Tensor, vectors: Tensor) -> None:
        """Replace the codebook vectors of a mask, bool (slots, K), by random ones of `vectors`,
        float (slots, N, D)."""
        if which.any():
            # Generated on the CPU, so that every device gets the same order.
            order = torch.rand(vectors.shape[:2]).argsort(1).to(vectors.device)
            # With fewer vectors than codes, % starts again at the first.
            order = order[:, torch.arange(self.num_embeddings) % order.shape[1]]
            new = torch.stack([v[i] for v, i in zip(vectors, order, strict=True)])
            self.codebook[which] = self.ema_sum[which] = new[which]
            self.ema_cluster_size[which], self.steps_unused[which] = 1.0, 0


def _differs(actual: Any, expected: Tensor) -> bool:
    return (
        not isinstance(actual, Tensor)
        or actual.shape != expected.shape
        or not torch.allclose(actual.detach().to(expected.dtype), expected, rtol=1e-4, atol=1e-5)
    )


def _equals(actual: Any, other: Tensor) -> bool:
    return not _differs(actual, other)


@task(
    "02",
    given='''
    def squared_distances(vectors, codebook):
        """Squared Euclidean distances: (N, D) and (K, D) -> (N, K)."""
        ...
    ''',
    solution='''
    def squared_distances(vectors, codebook):
        """Squared Euclidean distances: (N, D) and (K, D) -> (N, K)."""
        return (
            vectors.pow(2).sum(1, keepdim=True)
            - 2 * vectors @ codebook.T
            + codebook.pow(2).sum(1)
        )
    ''',
    hints=(
        "Expand the square: ||z - e||² = ||z||² - 2 z·e + ||e||².",
        "All the products z·e together are one matrix product: vectors @ codebook.T, (N, K).",
        "||z||² has shape (N, 1), ||e||² has shape (K,); broadcasting does the rest.",
    ),
    hides=("vqlib.quantizer.nearest_codes", "torch.cdist", "torch.functional.cdist"),
)
def squared_distances(answer):
    n, k, d = (torch.randperm(5)[:3] + 5).tolist()
    features, codebook = torch.randn(n, d), torch.randn(k, d)
    expected = (features[:, None] - codebook).pow(2).sum(-1)
    with _LargestTensor() as largest:
        actual = answer(features, codebook)
    if _equals(actual, expected.sqrt()):
        raise Wrong("These are distances; squared distances were asked for: no square root.")
    if _equals(actual, expected / d):
        raise Wrong("These are means over the D dimensions; a squared distance is their sum.")
    idea = "Expand the square and look at the sign and the factor of the mixed term."
    expect(actual, expected, f"{n} vectors and {k} codebook vectors of {d} numbers", idea)
    if largest.size > max(n * k, n * d, k * d):
        raise Wrong(
            f"The values are right, but the code makes a tensor of {largest.size} elements, "
            f"N x K x D = {n * k * d}. For a batch of 16 images it would have 134 million. "
            "Expand the square, so that the products are one matrix product."
        )


@task(
    "02",
    given='''
    def nearest_code(vectors, codebook, chunk=256):
        """Code of each vector: (N, D) and (K, D) -> int64 (N,).

        Never holds more than chunk x K distances at one time.
        """
        ...
    ''',
    solution='''
    def nearest_code(vectors, codebook, chunk=256):
        """Code of each vector: (N, D) and (K, D) -> int64 (N,).

        Never holds more than chunk x K distances at one time.
        """
        codes = [squared_distances(part, codebook).argmin(1) for part in vectors.split(chunk)]
        return torch.cat(codes)
    ''',
    hints=(
        "The code of a vector is the index of the smallest of its K distances.",
        "vectors.split(chunk) gives the vectors in parts of at most `chunk` rows.",
        "Take the argmin over the codebook, dimension 1, of each part, and torch.cat the results.",
    ),
    hides=("vqlib.quantizer.nearest_codes", "torch.cdist", "torch.functional.cdist"),
)
def nearest_code(answer):
    n, k, d, chunk = 103, 13, 4, 8  # the last chunk is smaller
    features, codebook = torch.randn(n, d), torch.randn(k, d)
    distances = (features[:, None] - codebook).pow(2).sum(-1)
    with _LargestTensor() as largest:
        actual = answer(features, codebook, chunk)
    if isinstance(actual, Tensor) and torch.equal(actual, distances.argmax(1)):
        raise Wrong("These are the codes of the farthest codebook vectors, not of the nearest.")
    if isinstance(actual, Tensor) and actual.shape == (k,):
        raise Wrong(
            "This is the nearest vector of each codebook vector, shape (K,). Asked for is the "
            "nearest codebook vector of each vector: over which dimension is the argmin?"
        )
    if isinstance(actual, Tensor) and actual.shape == (n // chunk * chunk,):
        raise Wrong(f"{n % chunk} codes are missing: the last chunk may be smaller.")
    expect(
        actual,
        distances.argmin(1),
        f"{n} vectors, {k} codebook vectors and chunks of {chunk}",
        "Each chunk gives the argmin of its own distances, in the order of the vectors.",
    )
    if largest.size > max(n * d, chunk * k):
        raise Wrong(
            f"The codes are right, but a tensor of {largest.size} elements is made, where "
            f"chunk x K = {chunk * k} distances are allowed at one time. Go through the vectors "
            "in parts of `chunk` rows."
        )


@task(
    "02",
    given='''
    def to_slots(z, slots):
        """Feature map to sub-vectors: (B, C, H, W) -> (slots, B * H * W, C / slots).

        Row n of each slot belongs to position n, in the order image, row, column. Slot 0 has the
        first C / slots channels, slot 1 the next ones, and so on.
        """
        ...
    ''',
    solution='''
    def to_slots(z, slots):
        """Feature map to sub-vectors: (B, C, H, W) -> (slots, B * H * W, C / slots).

        Row n of each slot belongs to position n, in the order image, row, column. Slot 0 has the
        first C / slots channels, slot 1 the next ones, and so on.
        """
        batch, channels, height, width = z.shape
        rows = z.permute(0, 2, 3, 1).reshape(batch * height * width, slots, channels // slots)
        return rows.permute(1, 0, 2)
    ''',
    hints=(
        "The numbers of one position are far apart in memory: the channels come before H and W.",
        "z.permute(0, 2, 3, 1) has the channels last; a reshape then splits them into slots.",
        "After reshape(B * H * W, slots, C / slots) one more permute puts the slots in front.",
    ),
    hides=("vqlib.quantizer.VectorQuantizer._flatten",),
)
def to_slots(answer):
    batch, slots, dim, height, width = 2, 3, 4, 5, 6
    z = torch.randn(batch, slots * dim, height, width)
    expected = torch.stack([part.permute(0, 2, 3, 1).flatten(0, 2) for part in z.chunk(slots, 1)])
    actual = answer(z, slots)
    no_permute = z.reshape(slots, -1, dim), z.reshape(-1, slots, dim).transpose(0, 1)
    if any(_equals(actual, wrong) for wrong in no_permute):
        raise Wrong(
            f"Each sub-vector should hold {dim} channels of one position, but here it holds "
            f"{dim} neighboring values of one channel. The shape alone does not show this: the "
            "channels must be the last dimension before the reshape."
        )
    interleaved = torch.stack([z[:, s::slots].permute(0, 2, 3, 1).flatten(0, 2) for s in range(3)])
    if _equals(actual, interleaved):
        raise Wrong(
            f"Slot 0 has the channels 0, {slots}, {2 * slots}, ... here; asked for are the first "
            f"{dim} channels 0 to {dim - 1}. Look at the order of `slots` and C / slots in reshape."
        )
    if isinstance(actual, Tensor) and actual.shape == (batch * height * width, slots, dim):
        raise Wrong("The slots should be the first dimension: one matrix for each codebook.")
    expect(
        actual,
        expected,
        f"features of shape {tuple(z.shape)} in {slots} slots",
        "Which position and which channels should row n of slot s hold?",
    )


@task(
    "02",
    given='''
    def from_slots(vectors, shape):
        """The inverse of to_slots: (slots, B * H * W, D) -> shape = (B, slots * D, H, W)."""
        rows = vectors.transpose(0, 1)  # (B * H * W, slots, D)
        return rows.reshape(shape)
    ''',
    solution='''
    def from_slots(vectors, shape):
        """The inverse of to_slots: (slots, B * H * W, D) -> shape = (B, slots * D, H, W)."""
        batch, channels, height, width = shape
        rows = vectors.transpose(0, 1)  # (B * H * W, slots, D)
        return rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    ''',
    hints=(
        "Follow the numbers of one position: where are they after `rows`, where should they go?",
        "A reshape never changes the order of the numbers in memory. Which order do the rows have: "
        "channels first or channels last?",
        "Reshape to (B, H, W, C) and permute to (B, C, H, W).",
    ),
    hides=("vqlib.quantizer.VectorQuantizer.quantize",),
)
def from_slots(answer):
    slots, dim, batch, height, width = 2, 3, 2, 4, 5
    z = torch.randn(batch, slots * dim, height, width)
    vectors = torch.stack([part.permute(0, 2, 3, 1).flatten(0, 2) for part in z.chunk(slots, 1)])
    actual = answer(vectors, z.shape)
    if _equals(actual, vectors.transpose(0, 1).reshape(z.shape)) or _equals(
        actual, vectors.reshape(z.shape)
    ):
        raise Wrong(
            "The shape is right, but the numbers of one position are spread over other positions: "
            "a reshape does not move the channels from the last dimension to the second."
        )
    transposed = z.transpose(2, 3).reshape(batch, slots * dim, width, height)
    if _equals(actual, transposed) or (
        isinstance(actual, Tensor) and actual.shape == transposed.shape != z.shape
    ):
        raise Wrong("Rows and columns are exchanged: H must come before W.")
    idea = "Every number should be back at its image, channel, row and column."
    expect(actual, z, f"the slots of features of shape {tuple(z.shape)}", idea)


@task(
    "02",
    given='''
    def straight_through(z, quantized):
        """Value of `quantized` in the forward pass; its gradient goes to z unchanged."""
        return z + (quantized - z)
    ''',
    solution='''
    def straight_through(z, quantized):
        """Value of `quantized` in the forward pass; its gradient goes to z unchanged."""
        return z + (quantized - z).detach()
    ''',
    hints=(
        "Compute the derivative of the returned expression with respect to z, term by term.",
        "z contributes +1 and (quantized - z) contributes -1. Which of the two must not count?",
    ),
    hides=("vqlib.quantizer.VectorQuantizer.straight_through",),
)
def straight_through(answer):
    z = torch.randn(2, 8, 3, 3, requires_grad=True)
    quantized = torch.randn(2, 8, 3, 3, requires_grad=True)
    wanted = torch.randn(2, 8, 3, 3)  # gradient that arrives from the decoder
    actual = answer(z, quantized)
    if _equals(actual, z.detach()):
        raise Wrong(
            "In the forward pass the decoder would get z, the features before quantization, so it "
            "never sees a codebook vector in training: the two are exchanged."
        )
    expect(actual, quantized, "the forward pass", "The decoder must get the codebook vectors.")
    if not actual.requires_grad:
        raise Wrong("No gradient at all goes through the result: too much is detached.")
    to_z, to_quantized = torch.autograd.grad(
        (actual * wanted).sum(), (z, quantized), allow_unused=True
    )
    if to_z is None or to_z.abs().max() < 1e-6:
        raise Wrong(
            "The forward pass is right, but the gradient at z is zero: the encoder learns nothing "
            "from the reconstruction. Which terms contain z, and what do their gradients add up to?"
        )
    if to_quantized is not None and to_quantized.abs().max() > 1e-6:
        raise Wrong(
            "The gradient also goes to the codebook. The codebook is trained by its own loss or by "
            "the EMA; the reconstruction loss must not move it."
        )
    expect(to_z, wanted, "the gradient at z", "It should equal the gradient at the output.")


@task(
    "02",
    given='''
    def vq_losses(z, quantized):
        """(codebook loss, commitment loss), both not yet weighted, as means over all elements."""
        squared_error = F.mse_loss(quantized, z)  # the same value for both losses
        codebook_loss, commitment_loss = squared_error.detach(), squared_error
        return codebook_loss, commitment_loss
    ''',
    solution='''
    def vq_losses(z, quantized):
        """(codebook loss, commitment loss), both not yet weighted, as means over all elements."""
        codebook_loss = F.mse_loss(quantized, z.detach())
        commitment_loss = F.mse_loss(z, quantized.detach())
        return codebook_loss, commitment_loss
    ''',
    hints=(
        "Both losses have the same value, but they differ in what they move: each needs an "
        "expression of its own.",
        "detach() is the stop-gradient sg[...]: what is detached does not move.",
        "The codebook loss moves the codebook vectors, so z is the one to detach.",
    ),
)
def vq_losses(answer):
    z = torch.randn(2, 8, 3, 3, requires_grad=True)
    quantized = torch.randn(2, 8, 3, 3, requires_grad=True)
    value = F.mse_loss(z, quantized).item()
    losses = answer(z, quantized)
    if not isinstance(losses, tuple) or len(losses) != 2:
        raise Wrong("Return two losses: the codebook loss and the commitment loss.")
    moved = []
    for name, loss in zip(("codebook loss", "commitment loss"), losses, strict=True):
        if isinstance(loss, Tensor) and _equals(loss, torch.tensor(value * z.numel())):
            raise Wrong(f"The {name} is the sum over all elements; asked for is their mean.")
        if isinstance(loss, Tensor) and _equals(loss, torch.tensor(0.25 * value)):
            raise Wrong(f"The {name} is already weighted; asked for is the loss without β.")
        idea = "It is the mean of the squared differences."
        expect(loss, torch.tensor(value), f"the value of the {name}", idea)
        if not loss.requires_grad:
            raise Wrong(f"The {name} moves nothing: both of its arguments are detached.")
        gradients = torch.autograd.grad(loss, (z, quantized), retain_graph=True, allow_unused=True)
        moved.append([gradient is not None for gradient in gradients])
    if [True, True] in moved:
        name = ("codebook loss", "commitment loss")[moved.index([True, True])]
        raise Wrong(f"The {name} moves both z and the codebook: one of them must be detached.")
    if moved == [[True, False], [False, True]]:
        raise Wrong(
            "The stop-gradients are exchanged: the codebook loss moves the encoder's features, and "
            "the commitment loss, which is multiplied by β = 0.25, moves the codebook."
        )
    if moved != [[False, True], [True, False]]:
        raise Wrong("Both losses move the same thing: each must detach the other argument.")


@task(
    "02",
    given='''
    def ema_update(codebook, ema_sum, cluster_size, vectors, codes, decay):
        """One step of the EMA for one codebook, without changing the arguments.

        codebook, ema_sum: (K, D); cluster_size: (K,); vectors: (N, D); codes: int64 (N,).
        Returns the new codebook, ema_sum and cluster_size. A codebook vector whose new cluster size
        is below 1e-5 keeps its value.
        """
        ...
    ''',
    solution='''
    def ema_update(codebook, ema_sum, cluster_size, vectors, codes, decay):
        """One step of the EMA for one codebook, without changing the arguments.

        codebook, ema_sum: (K, D); cluster_size: (K,); vectors: (N, D); codes: int64 (N,).
        Returns the new codebook, ema_sum and cluster_size. A codebook vector whose new cluster size
        is below 1e-5 keeps its value.
        """
        counts = torch.bincount(codes, minlength=len(codebook)).float()
        sums = torch.zeros_like(codebook).index_add(0, codes, vectors)
        cluster_size = decay * cluster_size + (1 - decay) * counts
        ema_sum = decay * ema_sum + (1 - decay) * sums
        size = cluster_size[:, None]
        codebook = torch.where(size < 1e-5, codebook, ema_sum / size.clamp_min(1e-5))
        return codebook, ema_sum, cluster_size
    ''',
    hints=(
        "First, for this batch: n_k, how many vectors chose each code, and the sum of them.",
        "torch.bincount(codes, minlength=K) counts; torch.zeros(K, D).index_add(0, codes, vectors) "
        "sums.",
        "Both averages have the form decay * old + (1 - decay) * new; the codebook is their "
        "quotient.",
        "torch.where(cluster_size[:, None] < 1e-5, old codebook, quotient) keeps unused vectors.",
    ),
    hides=(
        "vqlib.quantizer.VectorQuantizer._update_codebook",
        "vqlib.quantizer.VectorQuantizer.forward",
    ),
)
def ema_update(answer):
    k, d, n, decay = 6, 3, 40, 0.9
    old_codebook, cluster_size = torch.randn(k, d), torch.rand(k) + 0.5
    cluster_size[k - 1] = 0.0  # has not been chosen for so long that its averages are zero
    old_sum = old_codebook * cluster_size[:, None]
    vectors, codes = torch.randn(n, d), torch.randint(k - 2, (n,))  # none chooses k - 2 and k - 1
    one_hot = F.one_hot(codes, k).float()
    size = decay * cluster_size + (1 - decay) * one_hot.sum(0)
    total = decay * old_sum + (1 - decay) * one_hot.T @ vectors
    codebook = torch.where(size[:, None] < 1e-5, old_codebook, total / size[:, None])
    result = answer(old_codebook, old_sum, cluster_size, vectors, codes, decay)
    if not isinstance(result, tuple) or len(result) != 3:
        raise Wrong("Return three tensors: the new codebook, ema_sum and cluster_size.")
    case = f"{n} vectors, {k} codes and decay {decay}"
    if _equals(result[2], (1 - decay) * cluster_size + decay * one_hot.sum(0)):
        raise Wrong(
            f"decay = {decay} is the weight of the old average, and 1 - decay that of the batch; "
            "here the two weights are exchanged."
        )
    idea = "decay times the old cluster size plus (1 - decay) times the counts of the batch."
    expect(result[2], size, f"the cluster size, {case}", idea)
    means = one_hot.T @ vectors / one_hot.sum(0).clamp_min(1)[:, None]
    if _equals(result[1], decay * old_sum + (1 - decay) * means):
        raise Wrong(
            "ema_sum averages the sums of the vectors of each code, not their means: a batch in "
            "which many vectors choose a code must have more weight."
        )
    idea = "decay times the old sum plus (1 - decay) times the sum of the vectors of each code."
    expect(result[1], total, f"ema_sum, {case}", idea)
    unused = result[0][k - 1] if isinstance(result[0], Tensor) and len(result[0]) == k else None
    if unused is not None and not torch.allclose(unused, old_codebook[k - 1]):
        raise Wrong(
            f"A code with the cluster size 0 should keep its codebook vector, but gets "
            f"{[round(x, 3) for x in unused.tolist()]}. Its sum is 0, too, so the vector "
            "must be kept, not recomputed."
        )
    idea = "The codebook vector is the new ema_sum divided by the new cluster size."
    expect(result[0], codebook, f"the codebook, {case}", idea)


@task(
    "02",
    given='''
    def build_encoder():
        """The encoder of the diagram: images (B, 3, H, W) -> features (B, 256, H/32, W/32)."""
        layers = []
        ...
        return nn.Sequential(*layers)
    ''',
    solution='''
    def build_encoder():
        """The encoder of the diagram: images (B, 3, H, W) -> features (B, 256, H/32, W/32)."""
        layers = []
        channels = (3, 32, 64, 128, 256, 256)
        for i in range(5):
            layers.append(nn.Conv2d(channels[i], channels[i + 1], 4, stride=2, padding=1))
            if i < 4:
                layers += [nn.BatchNorm2d(channels[i + 1]), nn.ReLU()]
        return nn.Sequential(*layers)
    ''',
    hints=(
        "A loop over the five arrows of the encoder; each appends a convolution to `layers`.",
        "nn.Conv2d(c_in, c_out, 4, stride=2, padding=p): (H + 2p - 4) / 2 + 1 must be H / 2.",
        "BatchNorm2d and ReLU follow the first four convolutions only.",
    ),
    hides=("vqlib.vqvae.Encoder", "vqlib.vqvae.VQVAE"),
)
def build_encoder(answer):
    reference, encoder = Encoder(), answer()
    images = torch.rand(2, 3, 64, 96)
    if not hasattr(encoder, "parameters"):
        raise Wrong("build_encoder() should return an nn.Module.")
    modules = list(encoder.modules())
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d)]
    if len(convolutions) != 5:
        raise Wrong(f"The diagram has five convolutions, the encoder has {len(convolutions)}.")
    for row, (own, other) in enumerate(
        zip(convolutions, [m for m in reference if isinstance(m, nn.Conv2d)], strict=True), 1
    ):
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding"):
            if getattr(own, name) != getattr(other, name):
                raise Wrong(
                    f"Convolution {row}: {name} should be {getattr(other, name)}, not "
                    f"{getattr(own, name)}."
                )
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in modules)
    if norms != 4:
        raise Wrong(f"BatchNorm follows the first four convolutions; {norms} were found.")
    features = encoder(images)
    if features.shape == (2, 256, 2, 3) and features.min() >= 0:
        raise Wrong(
            "The features are never negative: a ReLU follows the last convolution, which "
            "has none. The quantizer needs features of both signs."
        )
    own_parameters = list(encoder.parameters())
    counts = sum(p.numel() for p in own_parameters), sum(p.numel() for p in reference.parameters())
    if counts[0] != counts[1]:
        raise Wrong(f"The encoder should have {counts[1]:,} parameters; it has {counts[0]:,}.")
    with torch.no_grad():
        for own, other in zip(own_parameters, reference.parameters(), strict=True):
            other.copy_(own)
    idea = "BatchNorm, then ReLU, after the first four convolutions, in this order."
    expect(features, reference(images), "images of 64 x 96 pixels", idea, atol=1e-4, rtol=1e-3)
    if list(encoder.state_dict()) != list(reference.state_dict()):
        raise Wrong(
            "Put all layers into one nn.Sequential without inner ones, so that the weights have "
            "the same names as the library's and can be loaded."
        )


@task(
    "02",
    given='''
    def vqvae_step(model, optimizer, images):
        """One training step of a VQVAE; returns the loss of these images as a number."""
        loss = model(images).loss
        loss.backward()
        optimizer.step()
        return loss.item()
    ''',
    solution='''
    def vqvae_step(model, optimizer, images):
        """One training step of a VQVAE; returns the loss of these images as a number."""
        model.train()
        loss = model(images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
    ''',
    hints=(
        "There are two independent bugs. One concerns the gradients of earlier steps.",
        "The other one: in which mode is the model after an evaluation? In that mode the quantizer "
        "does not update its codebook.",
        "optimizer.zero_grad() must come before loss.backward().",
    ),
    hides=("vqlib.training.fit", "vqlib.training.train_vqvae"),
)
def vqvae_step(answer):
    class Toy(nn.Module):
        """The interface of a VQVAE; its "codebook" counts the forward passes in train() mode."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)
            self.updates = 0

        def forward(self, images: Tensor) -> VQVAEOutput:
            self.updates += self.training
            raw = self.layer(images)
            mse, zero = F.mse_loss(raw, images), torch.zeros(())
            return VQVAEOutput(raw, raw, mse / 0.025 + 0.3, mse, zero + 0.3, zero, zero)

    batches = torch.rand(3, 2, 3, 4, 4)
    model = Toy()
    expected = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, expected)]
    accumulated = copy.deepcopy(model)
    losses = []
    for images in batches:
        optimizers[1].zero_grad()
        loss = expected(images).loss
        loss.backward()
        optimizers[1].step()
        losses.append(loss.item())
    accumulator = torch.optim.SGD(accumulated.parameters(), lr=0.01)
    for images in batches:
        accumulated(images).loss.backward()
        accumulator.step()
    start = model.layer.weight.detach().clone()
    for number, (images, loss) in enumerate(zip(batches, losses, strict=True), 1):
        model.eval()  # as an evaluation between two steps leaves it
        actual = answer(model, optimizers[0], images)
        if number == 1 and torch.equal(model.layer.weight, start):
            raise Wrong(
                "A step does not change the weights. The gradients must be those of this batch "
                "when optimizer.step() is called: look at the order of the calls."
            )
        if number == 1 and not isinstance(actual, float):
            raise Wrong(f"The loss should be a number, not a {type(actual).__name__}: loss.item().")
        if number == 1:
            case, idea = "the loss of the first step", "It is model(images).loss."
            expect(actual, loss, case, idea)
    if torch.allclose(model.layer.weight, accumulated.layer.weight):
        raise Wrong(
            "The first step is right, the later ones are not: the gradients of earlier batches are "
            "still in the sum. What must happen to them before loss.backward()?"
        )
    expect(
        model.layer.weight,
        expected.layer.weight,
        "the weights after three steps",
        "Each step uses the gradient of its own batch only.",
    )
    if model.updates != len(batches):
        raise Wrong(
            "The weights are right, but the step was done in eval() mode, because the model came "
            "from an evaluation. The quantizer and BatchNorm then learn nothing: the codebook "
            "stays as it is, without an error message."
        )


add_quiz(
    "02.1",
    "The quantizer returns the nearest codebook vectors. Which gradient of the reconstruction "
    "loss reaches z?",
    {
        "a small but nonzero gradient": "No. The output is constant in z except where the nearest "
        "vector changes, and there it jumps: the derivative is zero almost everywhere.",
        "a random gradient": "No. PyTorch computes exact derivatives of the operations it records.",
        "none": "Right. The index comes from argmin, which has no derivative: PyTorch records no "
        "path from the output to z.",
    },
)


add_quiz(
    "02.2",
    "Someone first computes q = straight_through(z, q), and afterwards the codebook loss "
    "F.mse_loss(q, z.detach()). What does this loss train?",
    {
        "the codebook, as it should": "No. In straight_through the codebook vectors are "
        "detached, so nothing computed from its result has a gradient at the codebook.",
        "the encoder": "Right. The result of straight_through has its gradient at z: 2 (e - z) / n "
        "here. A descent step therefore pushes z away from e with weight 1, and the commitment "
        "loss pulls it back with weight 0.25 only. The codebook never learns. In the small "
        "VQ-VAE of section 4 this bug makes vq_loss rise from 0.2 to above 1,000 within 250 steps, "
        "while the reconstruction loss falls.",
        "nothing": "Not quite: the result of straight_through has a gradient, at z.",
    },
)


add_quiz(
    "02.3",
    "In which mode does the reconstruction of an image depend on the other images of its batch?",
    {
        "train()": "Right. The mean and variance of each channel are those of the whole batch.",
        "eval()": "No. In eval() mode BatchNorm uses fixed statistics, so each image is "
        "processed independently of the others.",
        "both": "No. In eval() mode the statistics are fixed.",
    },
)
