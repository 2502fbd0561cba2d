"""Ancestral sampling from the prior: new grids of codes, one code after another.

The prior gives p(code_i | earlier codes). The first code is sampled from p(code_1) and written into
the grid, the second is sampled given the first, and so on: 256 steps give the codes of an image,
which `VQVAE.decode` turns into pixels. The naive method runs the full prior for each of the 256
codes and uses 1/256 of its output. But the activations at a position depend on earlier codes only,
so they do not change any more once these are sampled. `CachedPixelCNN` stores them (as the
key-value cache of a transformer does): sampling a grid then costs about as many operations as one
forward pass and gives the same codes. `complete` samples the missing codes of a partly given grid.

Papers: van den Oord et al. (2016), arXiv:1601.06759; caching: Ramachandran et al. (2017),
arXiv:1704.06001; top-p: Holtzman et al. (2019), arXiv:1904.09751; classifier-free guidance: Ho and
Salimans (2022), arXiv:2207.12598.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from .checks import check_tensor, check_whole
from .metrics import code_bits
from .pixelcnn import GatedBlock, PixelCNN
from .vqvae import eval_mode


def filter_logits(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Change a categorical distribution before sampling from it.

    Args:
        logits: float (..., K), finite.
        temperature: divisor of the logits; below 1 sharpens the distribution, above 1 flattens it.
        top_k: keep only the k most probable codes (and all that tie with the k-th).
        top_p: keep the smallest set of most probable codes whose total probability is at least p
            (nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751).

    Returns:
        float (..., K); the logits of excluded codes are -inf.

    Raises:
        ValueError: temperature is not finite and above 0, top_k is below 1, or top_p is not in
            (0, 1].
    """
    if temperature != 1:
        tiny = torch.finfo(logits.dtype).tiny  # smaller divisors may be treated as 0
        if not tiny <= temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0, got {temperature}")
        # Subtract the maximum, which would overflow at a low temperature.
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        check_whole(top_k=top_k)
        threshold = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(-1)
        excluded = p.cumsum(-1) - p >= top_p  # the codes before it already reach top_p
        logits = logits.masked_fill(excluded.gather(-1, order.argsort(-1)), -torch.inf)
    return logits


def sample_categorical(p: Tensor, uniforms: Tensor) -> Tensor:
    """Sample one code from each categorical distribution, by inverting the cumulative distribution.

    The cumulative sums of p divide [0, 1] into K intervals, and interval k has length p_k. A
    uniform random number falls into interval k with probability p_k. `torch.multinomial` needs K
    random numbers for each sample, this function one.

    Args:
        p: float (..., K), finite, sums to 1 over the last dimension. This is not checked, because
            the function is called for every code.
        uniforms: float (...), in [0, 1), as `torch.rand` returns them.

    Returns:
        int64 (...), values in 0..K-1.
    """
    cumulative = p.cumsum(-1)
    # Scaling by the rounded total keeps every number below it, so that a code of probability 0 is
    # never sampled.
    uniforms = uniforms.unsqueeze(-1) * cumulative.narrow(-1, -1, 1)
    return torch.searchsorted(cumulative, uniforms, right=True).squeeze(-1)


def guided_logits(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Logits of classifier-free guidance with weight w, (1 + w) * conditional - w * unconditional
    (Ho and Salimans 2022, arXiv:2207.12598, equation 6); float tensors of any equal shape."""
    return unconditional + (1 + guidance) * (conditional - unconditional)


def check_guidance(guidance: float, labels: Tensor | int | None) -> None:
    """Raise a ValueError if the weight is negative or not finite, or if labels are missing."""
    if not 0 <= guidance < math.inf:
        raise ValueError(f"guidance must be finite and at least 0, got {guidance}")
    if guidance and labels is None:
        raise ValueError(
            "guidance compares conditional and unconditional logits, so it needs labels"
        )


def sample(
    prior: PixelCNN,
    n: int,
    labels: Tensor | int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    given: Tensor | None = None,
    keep: Tensor | None = None,
    generator: torch.Generator | None = None,
    method: str = "cached",
    *,
    guidance: float = 0.0,
    grid: tuple[int, int] = (8, 8),
    progress: bool = False,
) -> Tensor:
    """Sample n grids of codes from a prior.

    Args:
        prior: used in eval() mode, and returned to the mode it was in. Orientation 0 (as
            photographed) is used. A prior that has a method `sample`, such as those of `beyond`,
            samples with it if `method` is "cached".
        n: number of grids.
        labels: one class for all grids, or int64 (n,); None samples unconditionally.
        temperature, top_k, top_p: see `filter_logits`.
        given: int64 (n, h, w, slots), codes that are partly kept; needs `keep`. Where `keep` is
            False, it may hold any values.
        keep: bool (h, w), True at positions where the codes of `given` stay. Codes are sampled in
            raster order, so a sampled code does not depend on kept codes that come later; see
            `complete`.
        generator: random generator on any device, for reproducible samples.
        method: "naive" runs the full prior once for each code; "cached" computes each position
            once. Both give the same codes (up to ties within rounding errors).
        guidance: weight w of classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598,
            equation 6): the logits become (1 + w) * conditional - w * unconditional. 0 samples from
            the conditional distribution; larger values give more typical examples of the class.
            Needs labels.
        grid: (h, w) if `given` is None; 8 x 8 gives images of 256 x 256 pixels.
        progress: show a progress bar.

    Returns:
        int64 (n, h, w, slots).

    Raises:
        ValueError: an argument has the wrong shape, dtype or range, the method is unknown, a label
            or a kept code does not exist, guidance is used without labels, the prior has positions
            for another grid, or its weights are not finite.
    """
    if method not in ("naive", "cached"):
        raise ValueError(f'method must be "naive" or "cached", got {method!r}')
    if given is None and getattr(prior, "grid", grid) != grid:
        raise ValueError(f"this prior was made for a grid of {prior.grid}, got {grid}")
    if method == "cached" and hasattr(prior, "sample"):
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        return prior.sample(n, labels, given=given, keep=keep, generator=generator, **options)
    check_guidance(guidance, labels)
    with eval_mode(prior) as device:
        codes, keep_mask = initial_grid(prior, n, given, keep, grid, device)
        is_kept, num_to_sample = keep_mask.tolist(), prior.slots * int((~keep_mask).sum())
        source = device if generator is None else generator.device
        options = {"dtype": prior.head.weight.dtype, "device": source, "generator": generator}
        uniforms = iter(torch.rand(num_to_sample, n, **options).to(device).unbind())
        labels = check_labels(prior, n, labels, device)
        if guidance:
            labels = torch.cat([labels, torch.full_like(labels, prior.num_classes)])
            codes = torch.cat([codes, codes])  # each grid with its class and with "no label"
        # Views of all codes, in sampling order: writing to a view must change `codes`.
        code_views = iter(codes.view(len(codes), -1).unbind(1))
        cache = CachedPixelCNN(prior, codes.shape, labels) if method == "cached" else None
        rows, columns = map(range, codes.shape[1:3])
        positions = [(row, column) for row in rows for column in columns]
        for row, column in tqdm(positions, "sampling", leave=False, disable=not progress):
            if cache is not None:
                cache.start_position(row, column)
            for slot in range(prior.slots):
                code_view = next(code_views)
                if cache is not None:
                    cache.compute_slot(slot)
                if not is_kept[row][column]:
                    if cache is None:
                        logits = prior(codes, labels)[:, row, column, slot]
                    else:
                        logits = cache.logits(slot)
                    if guidance:
                        logits = guided_logits(*logits.chunk(2), guidance)
                    p = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
                    sampled = sample_categorical(p, next(uniforms))
                    code_view.copy_(torch.cat([sampled, sampled]) if guidance else sampled)
                if cache is not None:
                    cache.set_code(slot, code_view)
    return codes[:n].clone()


def complete(
    prior: PixelCNN,
    given: Tensor,
    keep: Tensor,
    candidates: int = 64,
    labels: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """Sample the missing codes of a grid given all kept codes, also those that come later.

    `sample` conditions each code on earlier ones only. This function samples many candidates with
    it, weights each candidate by the likelihood of the kept codes given the sampled ones, and
    samples one candidate with these weights (sampling-importance-resampling, Rubin 1988). As the
    number of candidates grows, the result approaches a sample from the prior's conditional
    distribution given the kept codes. With options that change the distribution (temperature,
    top_k, top_p, guidance) it is only an approximation. If no kept code comes after a sampled one,
    all weights are equal, and one candidate is enough.

    Args:
        prior: see `sample`.
        given, keep: see `sample`; int64 (n, h, w, slots) and bool (h, w).
        candidates: number of candidates for each of the n grids.
        labels: one class for all grids, or int64 (n,), or None.
        generator: see `sample`.
        options: further options of `sample`.

    Returns:
        int64 (n, h, w, slots).

    Raises:
        ValueError: see `sample`, or `candidates` is below 1.
    """
    n = len(given)
    if min(n, candidates) < 1:
        raise ValueError(f"expected at least 1 grid and 1 candidate, got {n} and {candidates}")
    labels = check_labels(prior, n, labels, given.device)
    if labels is not None:
        labels = labels.repeat_interleave(candidates)
    repeated = given.repeat_interleave(candidates, 0)
    sampled = sample(
        prior, len(repeated), labels, given=repeated, keep=keep, generator=generator, **options
    )
    bits = code_bits(prior, sampled, labels)[:, keep.cpu()].flatten(1).sum(1)
    weights = (-bits.double() * math.log(2)).view(n, candidates).softmax(1)
    source = sampled.device if generator is None else generator.device
    uniforms = torch.rand(n, device=source, generator=generator).cpu().double()
    selected = torch.arange(n) * candidates + sample_categorical(weights, uniforms)
    return sampled[selected.to(sampled.device)]


def initial_grid(
    prior: PixelCNN,
    n: int,
    given: Tensor | None,
    keep: Tensor | None,
    grid: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The initial grid, int64 (n, h, w, slots), and the mask of kept positions, bool (h, w).

    Raises:
        ValueError: see `sample`.
    """
    # Checks sums, which are NaN or infinite if a weight is, because this is faster.
    if not torch.stack([weight.sum() for weight in prior.parameters()]).isfinite().all():
        raise ValueError(
            "the prior's weights contain NaN or infinity: load another file, or train again with "
            "a lower learning rate"
        )
    check_whole(n=n)
    if (given is None) != (keep is None):
        raise ValueError(
            "given and keep go together: the codes, and the mask of positions where they stay"
        )
    if given is None or keep is None:
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"grid must be (h, w), each at least 1, got {grid}")
        given, keep = torch.zeros(n, *grid, prior.slots).long(), torch.zeros(grid).bool()
    check_tensor("given", given, torch.long, (n, "h", "w", prior.slots))
    check_tensor("keep", keep, torch.bool, given.shape[1:3])
    given, keep = given.to(device), keep.to(device)
    codes = given.masked_fill(~keep[..., None], 0).contiguous()
    if not 0 <= codes.min() <= codes.max() < prior.num_embeddings:
        raise ValueError(f"given: codes that are kept must lie in 0..{prior.num_embeddings - 1}")
    return codes, keep.cpu()


def check_labels(
    prior: PixelCNN, n: int, labels: Tensor | int | None, device: torch.device
) -> Tensor | None:
    """Class label of each grid, int64 (n,); None for unconditional sampling."""
    if labels is None:
        return None
    labels = torch.as_tensor(labels, device=device)
    is_integer = labels.dtype != torch.bool and torch.can_cast(labels.dtype, torch.long)
    if not is_integer or labels.shape not in ((), (1,), (n,)):
        raise ValueError(
            f"labels must be one class or int64 ({n},), got {labels.dtype} {tuple(labels.shape)}"
        )
    labels = labels.long().expand(n)
    if not 0 <= labels.min() <= labels.max() <= prior.num_classes:
        raise ValueError(
            f"labels must lie in 0..{prior.num_classes - 1}, or be {prior.num_classes} for "
            '"no label"'
        )
    return labels


class CachedPixelCNN:
    """Incremental evaluation of a `PixelCNN`, one code after another, with cached activations.

    - `start_row` computes the vertical stack for a whole row, in all layers, before the first code
      of the row is sampled. The vertical stack depends on the rows above only.
    - `start_position` adds what the positions to the left contribute. They are complete, so this is
      one matrix product for all blocks together.
    - `compute_slot` adds what the earlier slots of the same position contribute, with one matrix
      product for all blocks. What remains are two small products per block, from the slot to
      itself, which have to be computed layer after layer.

    Usage: for each position in raster order call `start_position`; then for each slot
    `compute_slot`, `logits` if they are needed, and `set_code` with the code of this slot.

    Results are written into preallocated tensors, so no gradients can be recorded: call it within
    `torch.no_grad()` or `torch.inference_mode()`.

    Args:
        prior: evaluated as in eval() mode, without dropout, for orientation 0 (as photographed).
        shape: (n, h, w, slots) of the codes.
        labels: int64 (n,), or None for "no label".
    """

    def __init__(self, prior: PixelCNN, shape: Sequence[int], labels: Tensor | None) -> None:
        n, height, width, slots = shape
        blocks, zeros = list(prior.blocks), prior.head.weight.new_zeros
        filters, channels = prior.horizontal.out_channels, prior.horizontal.in_channels

        def stacked(function: Callable[[GatedBlock], Tensor]) -> Tensor:
            return torch.stack([function(block) for block in blocks])

        d, e = filters // slots, channels // slots  # features and embedding of one slot

        # State of the rows above: embeddings of all codes with the zero padding of the
        # convolutions, and for each block the last two rows of the vertical stack, the causal mean,
        # and its weights.
        self.embedded = zeros(height + 3, width + 2 * 3, n, channels)
        self.vertical_weights = prior.vertical.weight.flatten(1), prior.vertical.bias
        self.horizontal_weights = prior.horizontal.weight.flatten(1), prior.center.bias
        self.vertical_blocks = [
            SimpleNamespace(
                rows=zeros(2, width + 2, n, filters),
                kernel=(block.vertical.weight.flatten(1), block.vertical.bias),
                mean=zeros(n, filters),
                mean_weight=block.causal_mean_weight[:, :, 0, 0],
                norm=(block.vertical_norm.weight.flatten(), block.vertical_norm.bias.flatten()),
            )
            for block in blocks
        ]
        # State of the current position: embeddings of its codes, and sums and features of each
        # block.
        self.position: tuple[int, int] | None = None
        self.position_embedding = zeros(n, channels)
        self.sums = zeros(len(blocks), n, 2 * filters)
        self.features = zeros(len(blocks) + 1, n, filters)

        center_bias = stacked(lambda block: block.center.bias)
        bias = prior.conditional_bias(n, labels).unflatten(1, center_bias.shape) + center_bias
        self.bias = bias.transpose(0, 1)[:, None]  # (blocks, 1, n, 2 filters)

        # 1x1 weights (out, in, 1, 1) as matrices (in, out). Only `center` is masked, and only
        # between slots: a slot reads the slots before it completely.
        self.vertical_to_horizontal_weights = stacked(
            lambda block: block.vertical_to_horizontal.weight[:, :, 0, 0].T
        )
        self.horizontal_block_weights = stacked(lambda block: block.horizontal.weight[:, :, 0, 0].T)
        center = stacked(lambda block: block.center.weight[:, :, 0, 0].T)
        out = stacked(lambda block: block.horizontal_out.weight[:, :, 0, 0])
        scale = stacked(lambda block: block.horizontal_norm.weight.flatten())
        shift = stacked(lambda block: block.horizontal_norm.bias.flatten())
        first_center = prior.center.weight[:, :, 0, 0].T
        self.eps, self.slot_width = blocks[0].horizontal_norm.eps, (2 * d,)
        self.slots = []  # weights for each slot, and views of the current position's state
        for s in range(slots):
            own, gates = (slice(s * size, (s + 1) * size) for size in (d, 2 * d))
            from_context = self.sums[:, :, gates]
            # Writing a product into contiguous memory is faster.
            sums = zeros(from_context.shape) if s else from_context
            layers = (  # per block: sums, 4 weights, output features (n, d)
                sums,
                center[:, own, gates],
                scale[:, gates],
                shift[:, gates],
                out[:, own].transpose(1, 2),
                self.features[1:, :, own],
            )
            self.slots.append(
                SimpleNamespace(
                    input_features=self.features[0, :, own],  # (n, d), of the first block
                    earlier_embeddings=self.position_embedding[:, : s * e],  # of earlier slots
                    embedding_weights=first_center[: s * e, own],
                    from_context=from_context,  # (blocks, n, 2d), of rows above and of the left
                    sums=sums,  # (blocks, n, 2d), from_context plus that of the earlier slots
                    earlier_features=self.features[:-1, :, : s * d],
                    feature_weights=center[:, : s * d, gates],
                    layers=list(zip(*(x.unbind() for x in layers), strict=True)),
                    output_features=self.features[-1, :, : own.stop],  # slots up to this one
                    head=prior.head.weight.chunk(slots)[s][:, : own.stop, 0, 0].T,
                    bias=prior.head.bias.chunk(slots)[s],
                    embedding=prior.embedding.weight.chunk(slots)[s],  # (K, e)
                    embedded=self.position_embedding[:, s * e : (s + 1) * e],  # this slot's code
                )
            )

    def start_row(self, row: int) -> None:
        """Compute the vertical stack for this row, and its input to the horizontal stack."""
        v_stack = F.linear(
            unfold_columns(self.embedded[row : row + 3], 7).flatten(2), *self.vertical_weights
        )
        v_outputs = []  # one tensor (w, n, filters) for each block, like v_stack
        for block in self.vertical_blocks:
            block.rows[0] = block.rows[1]
            block.rows[1, 1:-1] = v_stack
            block.mean.lerp_(v_stack.mean(0), 1 / (row + 1))
            y = F.linear(unfold_columns(block.rows, 3).flatten(2), *block.kernel)
            y = y + F.linear(block.mean, block.mean_weight)
            v_outputs.append(F.glu(torch.layer_norm(y, y.shape[-1:], *block.norm, self.eps)))
            v_stack = v_stack + v_outputs[-1]
        to_horizontal = torch.stack(v_outputs).flatten(1, 2) @ self.vertical_to_horizontal_weights
        from_above = to_horizontal.unflatten(1, v_stack.shape[:2]) + self.bias
        self.from_above_by_column = from_above.unbind(1)  # one (blocks, n, 2 filters) per column

    def start_position(self, row: int, column: int) -> None:
        """Store the previous position and start this one: add the input from the left."""
        if self.position is not None:
            self.embedded[self.position] = self.position_embedding
        self.position = row + 3, column + 3  # in `embedded`, after 3 rows and columns of padding
        if column == 0:
            self.start_row(row)
            self.sums.copy_(self.from_above_by_column[0])
        else:  # self.features still holds the position to the left
            torch.baddbmm(
                self.from_above_by_column[column],
                self.features[:-1],
                self.horizontal_block_weights,
                out=self.sums,
            )
        left = self.embedded[row + 3, column : column + 3].permute(1, 2, 0).flatten(1)
        kernel, bias = self.horizontal_weights
        torch.addmm(bias, left, kernel.T, out=self.features[0])

    def compute_slot(self, slot: int) -> None:
        """Compute the features of this slot in all blocks; the slots before it must be set."""
        cache = self.slots[slot]
        if slot:
            cache.input_features.addmm_(cache.earlier_embeddings, cache.embedding_weights)
            torch.baddbmm(
                cache.from_context, cache.earlier_features, cache.feature_weights, out=cache.sums
            )
        x = cache.input_features
        for sums, center, scale, shift, weight, out in cache.layers:
            y = torch.addmm(sums, x, center)
            y = torch.layer_norm(y, self.slot_width, scale, shift, self.eps)
            x = torch.addmm(x, F.glu(y), weight, out=out)

    def logits(self, slot: int) -> Tensor:
        """Logits of this slot, float (n, K); call after `compute_slot`."""
        cache = self.slots[slot]
        return torch.addmm(cache.bias, cache.output_features, cache.head)

    def set_code(self, slot: int, codes: Tensor) -> None:
        """Set the codes of this slot, int64 (n,), as input of all later ones."""
        cache = self.slots[slot]
        torch.index_select(cache.embedding, 0, codes, out=cache.embedded)


def unfold_columns(rows: Tensor, width: int) -> Tensor:
    """Inputs of a convolution kernel that spans all rows, at each column: a view of
    (h, columns, n, channels) as (columns - width + 1, n, channels, h, width)."""
    return rows.unfold(1, width, 1).permute(1, 2, 3, 0, 4)
