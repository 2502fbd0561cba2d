"""Tasks of notebook 04: loss, teacher forcing, masks, two stacks and label dropout of a prior."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...pixelcnn import MaskedConv2d
from ..exercises import NotAttempted, Wrong, add_quiz, expect, task


@task(
    "04",
    given='''
    def bits_per_code(logits, codes):
        """Mean code length in bits: logits (B, H, W, S, K) and codes int64 (B, H, W, S) -> ()."""
        log_p = logits.log_softmax(dim=1)
        of_the_codes = log_p.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
        return -of_the_codes.sum((1, 2, 3)).mean()
    ''',
    solution='''
    def bits_per_code(logits, codes):
        """Mean code length in bits: logits (B, H, W, S, K) and codes int64 (B, H, W, S) -> ()."""
        log_p = logits.log_softmax(dim=-1)
        of_the_codes = log_p.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
        return -of_the_codes.mean() / math.log(2)
    ''',
    hints=(
        "Set all logits to zero. The distribution is uniform, so the answer is log2 K, whatever "
        "the size of the grid. Three separate mistakes prevent that.",
        "The probabilities of the K possible codes at one slot have to sum to 1: over which of the "
        "five axes does the softmax run?",
        "log_softmax is a natural logarithm: log2 x = ln x / ln 2. And the mean runs over all "
        "codes, not over images.",
    ),
    hides=("vqlib.metrics.code_bits",),
)
def bits_per_code(answer):
    b, h, w, s, k = 3, 4, 5, 2, 7
    logits, codes = 2 * torch.randn(b, h, w, s, k), torch.randint(k, (b, h, w, s))
    logits.requires_grad_()
    got = answer(logits, codes)
    case = f"logits of shape {tuple(logits.shape)}"
    if isinstance(got, Tensor) and got.ndim == 0:
        _name_the_wrong_bits(got, logits.detach(), codes)
    expected = F.cross_entropy(logits.detach().flatten(0, 3), codes.flatten()) / math.log(2)
    expect(got, expected, case, "Mean over all codes of -log2 p(code).")
    if not got.requires_grad:
        raise Wrong("The result has no gradient, so it can't be used as a loss.")


def _name_the_wrong_bits(got: Tensor, logits: Tensor, codes: Tensor) -> None:
    """Raise `Wrong` if the value is that of a typical mistake, or of a combination of them."""
    axes = {0: "the images", 1: "the rows", 2: "the columns", 3: "the slots"}
    means = {
        "": 1 / codes.numel(),
        "The sum over an image is not the mean over its codes.": 1 / len(codes),
        "The sum over all codes is not their mean.": 1.0,
    }
    units = {"": math.log(2), "These are nats, not bits.": 1.0}
    for axis, (mean, weight), (unit, nats) in itertools.product(
        (*axes, 4), means.items(), units.items()
    ):
        log_p = logits.log_softmax(axis).gather(-1, codes[..., None])
        if torch.isclose(got.detach(), -log_p.sum() * weight / nats, rtol=1e-4):
            where = f"The softmax runs over {axes[axis]}." if axis in axes else ""
            if found := " ".join(text for text in (where, unit, mean) if text):
                raise Wrong(found)


@task(
    "04",
    given='''
    def teacher_forcing(codes, start):
        """Inputs and targets of a model that predicts the next code, from int64 (B, H, W, S).

        Returns two int64 (B, H * W * S). `start` is an index that no code has.
        """
        targets = codes.flatten(1)
        inputs = targets.clone()
        inputs[:, 0] = start
        return inputs, targets
    ''',
    solution='''
    def teacher_forcing(codes, start):
        """Inputs and targets of a model that predicts the next code, from int64 (B, H, W, S).

        Returns two int64 (B, H * W * S). `start` is an index that no code has.
        """
        targets = codes.flatten(1)
        inputs = F.pad(targets[:, :-1], (1, 0), value=start)
        return inputs, targets
    ''',
    hints=(
        "Write down the inputs and, below them, the targets of a grid with the codes 5, 6, 7, 8. "
        "Which input stands above the target 6?",
        "At step i the model may know the codes up to i - 1. The code i - 1 is the newest of them.",
        "The inputs are `start` and then all targets except the last: F.pad or torch.cat.",
    ),
)
def teacher_forcing(answer):
    b, h, w, s = 3, 2, 3, 2
    start = 50
    codes = torch.stack([torch.randperm(start)[: h * w * s] for _ in range(b)]).view(b, h, w, s)
    returned = answer(codes, start)
    if returned is None:
        raise NotAttempted
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise Wrong("Two tensors were expected: inputs and targets.")
    inputs, targets = returned
    sequence = codes.flatten(1)
    case = f"codes of shape {tuple(codes.shape)}"
    expect(targets, sequence, f"the targets of {case}", "Every code of the grid is a target once.")
    expected = torch.cat([torch.full((b, 1), start), sequence[:, :-1]], 1)
    if (
        isinstance(inputs, Tensor)
        and inputs.shape == targets.shape
        and not torch.equal(inputs, expected)
    ):
        if (inputs == targets).any():
            step = int((inputs == targets).any(0).nonzero()[0])
            raise Wrong(
                f"At step {step} the input is the target itself, so nothing has to be predicted."
            )
        if torch.equal(inputs[:, :-1], targets[:, 1:]):
            raise Wrong(
                "The shift has the wrong direction: the input is the code after the target."
            )
        if torch.equal(inputs[:, 0], targets[:, -1]):
            raise Wrong("At step 0 the input is the last code of the grid, which comes later.")
    expect(inputs, expected, f"the inputs of {case}", "Which codes does the model know at step i?")


def inputs_as_found(codes: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """The code that `teacher_forcing` is given as, for figures that must not change with it."""
    targets = codes.flatten(1)
    inputs = targets.clone()
    inputs[:, 0] = start
    return inputs, targets


@task(
    "04",
    given='''
    def causal_mask(mask_type, in_channels, out_channels, kernel_size, slots):
        """Mask "A" or "B" of a convolution's weight: float (out, in, kernel_size, kernel_size).

        The channels of each slot are adjacent: with 8 channels and 4 slots, channels 0 and 1
        belong to slot 0, channels 2 and 3 to slot 1, and so on.
        """
        ...
    ''',
    solution='''
    def causal_mask(mask_type, in_channels, out_channels, kernel_size, slots):
        """Mask "A" or "B" of a convolution's weight: float (out, in, kernel_size, kernel_size).

        The channels of each slot are adjacent: with 8 channels and 4 slots, channels 0 and 1
        belong to slot 0, channels 2 and 3 to slot 1, and so on.
        """
        mask = torch.zeros(out_channels, in_channels, kernel_size, kernel_size)
        center = kernel_size // 2
        mask[:, :, :center] = 1
        mask[:, :, center, :center] = 1
        in_slot = torch.arange(in_channels) // (in_channels // slots)
        out_slot = torch.arange(out_channels) // (out_channels // slots)
        if mask_type == "A":
            mask[:, :, center, center] = (in_slot[None] < out_slot[:, None]).float()
        else:
            mask[:, :, center, center] = (in_slot[None] <= out_slot[:, None]).float()
        return mask
    ''',
    hints=(
        "Start from zeros. Three assignments: rows above the center, the center row to the left of "
        "the center, and the center itself.",
        "The center is a matrix (out, in). Compute the slot of each channel with torch.arange and "
        "an integer division by the number of channels per slot.",
        "Compare in_slot[None, :] with out_slot[:, None]: < for mask A, <= for mask B.",
    ),
    hides=("vqlib.pixelcnn.MaskedConv2d",),
)
def causal_mask(answer):
    per_slot = torch.randint(2, 4, (2,)).tolist()
    for (n_in, n_out), kernel, slots in itertools.product([per_slot], (1, 3, 5), (1, 4)):
        expected = {kind: _mask(kind, n_in, n_out, kernel, slots) for kind in "AB"}
        size = (n_in * slots, n_out * slots, kernel, slots)
        for kind in "AB":
            got = answer(kind, *size)
            case = f"mask {kind}, {size[0]} -> {size[1]} channels, kernel {kernel}, {slots} slots"
            if isinstance(got, Tensor) and got.shape == expected[kind].shape:
                _name_the_wrong_mask(got.float(), kind, expected, slots, case)
            idea = "Rows above, then left in the row, then the slots at the center."
            expect(got, expected[kind], case, idea)


def _mask(kind: str, n_in: int, n_out: int, kernel: int, slots: int) -> Tensor:
    order = torch.arange(kernel * kernel).view(kernel, kernel)
    mask = (order < order[kernel // 2, kernel // 2]).float()
    mask = mask.expand(n_out * slots, n_in * slots, kernel, kernel).clone()
    slot_mask = torch.ones(slots, slots).tril(-1 if kind == "A" else 0)
    block = slot_mask.repeat_interleave(n_out, 0).repeat_interleave(n_in, 1)
    mask[:, :, kernel // 2, kernel // 2] = block
    return mask


def _name_the_wrong_mask(
    got: Tensor, kind: str, expected: dict[str, Tensor], slots: int, case: str
) -> None:
    right, center = expected[kind], got.shape[-1] // 2
    if torch.equal(got, right):
        return
    if torch.equal(got, expected["B" if kind == "A" else "A"]):
        raise Wrong(f"For {case}: this is the other mask. Which one may see the slot itself?")
    if got[:, :, center + 1 :].any():
        raise Wrong(f"For {case}: a weight below the center is not masked. Rows below come later.")
    if got[:, :, center, center + 1 :].any():
        raise Wrong(f"For {case}: a weight to the right of the center, in its row, is not masked.")
    if not torch.equal(got[:, :, :center], right[:, :, :center]):
        raise Wrong(f"For {case}: the rows above the center are seen completely, by all slots.")
    got, right = got[:, :, center, center], right[:, :, center, center]
    of_out, of_in = (torch.arange(n) * slots // n for n in right.shape)
    exchanged = of_out[:, None].lt(of_in) if kind == "A" else of_out[:, None].le(of_in)
    if torch.equal(got, exchanged.float()):
        raise Wrong(f"For {case}: input and output are exchanged. The weight is (out, in).")
    if not torch.equal(got, right):
        out, into = (got != right).nonzero()[0].tolist()
        raise Wrong(
            f"For {case}: at the center, the weight from input channel {into} to output channel "
            f"{out} should be {right[out, into]:.0f}. To which slots do these channels belong?"
        )


@task(
    "04",
    given='''
    def is_causal(model, codes, num_embeddings):
        """Whether no logits depend on their own code or on a later one: True or False.

        model maps codes, int64 (B, H, W, S) in 0..num_embeddings-1, to logits (B, H, W, S, K).
        """
        ...
    ''',
    solution='''
    def is_causal(model, codes, num_embeddings):
        """Whether no logits depend on their own code or on a later one: True or False.

        model maps codes, int64 (B, H, W, S) in 0..num_embeddings-1, to logits (B, H, W, S, K).
        """
        before = model(codes).flatten(1, 3)
        for i in range(before.shape[1]):
            changed = codes.flatten(1).clone()
            changed[:, i:] = (changed[:, i:] + 1) % num_embeddings
            after = model(changed.view_as(codes)).flatten(1, 3)
            if not torch.equal(after[:, : i + 1], before[:, : i + 1]):
                return False
        return True
    ''',
    hints=(
        "Change the code i and compare the logits before and after. Which logits must stay the "
        "same? Do this for every i.",
        "Codes in raster order are codes.flatten(1), and logits in raster order are "
        "model(codes).flatten(1, 3). The change must be a real one: (code + 1) % num_embeddings.",
        "After a change of code i the logits 0 to i (including i) must be equal to those before.",
    ),
    hides=("vqlib.pixelcnn.dependency_matrix",),
)
def is_causal(answer):
    h, w, s, k = 2, 3, 2, 5
    n = h * w * s
    codes = torch.randint(k, (1, h, w, s))
    allowed = torch.ones(n, n).tril(-1)

    def leak(*pairs: tuple[int, int]) -> Tensor:
        matrix = allowed.clone()
        for output, into in pairs:
            matrix[output, into] = 1
        return matrix

    mean = allowed + 0.01 / n  # BatchNorm passes on a mean over all positions
    position = n // 2  # slot 0 of a position in the middle
    models = [
        ("uses all earlier codes", allowed, True),
        ("uses no code at all", torch.zeros(n, n), True),
        ("uses every code as the input of its own prediction", torch.ones(n, n).tril(), False),
        ("lets one output depend on its own code", leak((position, position)), False),
        ("lets a slot see the next slot of its position", leak((position, position + 1)), False),
        ("lets a position see its right neighbor", leak((position, position + s)), False),
        ("lets a position see the one below", leak((1, 1 + w * s)), False),
        ("lets the first output see the last code", leak((0, n - 1)), False),
        ("lets the last output see its own code", leak((n - 1, n - 1)), False),
        ("subtracts a mean over all positions", mean, False),
        ("uses all codes", torch.ones(n, n), False),
    ]
    for name, matrix, causal in models:
        verdict = answer(_dense_model(matrix, (h, w, s), k), codes, k)
        if verdict is None:
            raise NotAttempted
        if bool(verdict) and not causal:
            raise Wrong(f"A model that {name} passes your test, but it is not causal.")
        if not verdict and causal:
            raise Wrong(f"A model that {name} is causal, but your test rejects it.")


def _dense_model(matrix: Tensor, shape: tuple[int, int, int], k: int):
    """A model whose output i depends on input j exactly if matrix[i, j] is not 0."""
    weight = torch.randn(len(matrix), len(matrix), k, k)

    def model(codes: Tensor) -> Tensor:
        one_hot = F.one_hot(codes.flatten(1), k).float()
        logits = torch.einsum("ij,ijkl,bjl->bik", matrix, weight, one_hot)
        return logits.view(len(codes), *shape, k)

    return model


@task(
    "04",
    given='''
    def vertical_layer(x, weight):
        """First layer of the vertical stack; the output at row r feeds the prediction of row r.

        x: embedded codes, float (B, D, H, W). weight: float (C, D, 3, 7), no mask.
        Returns float (B, C, H, W).
        """
        padded = F.pad(x, (3, 3, 2, 0))  # left, right, above, below
        return F.conv2d(padded, weight)
    ''',
    solution='''
    def vertical_layer(x, weight):
        """First layer of the vertical stack; the output at row r feeds the prediction of row r.

        x: embedded codes, float (B, D, H, W). weight: float (C, D, 3, 7), no mask.
        Returns float (B, C, H, W).
        """
        padded = F.pad(x, (3, 3, 3, 0))[:, :, :-1]  # left, right, above, below
        return F.conv2d(padded, weight)
    ''',
    hints=(
        "Look at the figure: which row must be empty, and what are the three rows that a kernel "
        "with three rows should read for output row r?",
        "The output has to be moved down by one row. The row that becomes free at the top has "
        "nothing above it: zeros. What happens to the last row of x?",
        "Pad three rows above instead of two, and drop the last row, so that H rows remain.",
    ),
    hides=("vqlib.pixelcnn.down_shift",),
)
def vertical_layer(answer):
    b, d, c, h, w = 2, 3, 4, 5, 6
    x, weight = torch.randn(b, d, h, w), torch.randn(c, d, 3, 7)
    rows = F.conv2d(F.pad(x, (3, 3, 3, 0)), weight)  # row r reads the rows r-3..r-1; h + 1 rows
    got = answer(x, weight)
    case = f"a map of {h} rows and {w} columns"
    if isinstance(got, Tensor) and got.shape == rows.shape:
        raise Wrong(
            f"For {case} the output has one row too many. Which row of x must no output row read, "
            "because no prediction may use it?"
        )
    if isinstance(got, Tensor) and got.shape != (b, c, h, w):
        raise Wrong(
            f"For {case} the shape should be {(b, c, h, w)}, not {tuple(got.shape)}: one output "
            "row for each row of x, and one output column for each column."
        )
    if isinstance(got, Tensor):
        got = got.detach()

        def same(other: Tensor) -> bool:
            return torch.allclose(got, other, rtol=1e-4, atol=1e-5)

        if same(rows[:, :, 1:]):
            raise Wrong("Output row r still reads row r itself, and there the codes to the right.")
        if same(F.pad(rows[:, :, 2:], (0, 0, 0, 1))) or same(
            F.conv2d(F.pad(x, (3, 3, 1, 1)), weight)
        ):
            raise Wrong("Output row r reads a row below r: the shift has the wrong direction.")
        if same(rows[:, :, 1:].roll(1, 2)):
            raise Wrong("The last row has been moved to the top, where it comes too early.")
        if same(F.pad(rows, (0, 0, 1, 0))[:, :, :h]):
            raise Wrong("Output row r reads the rows up to r - 2: row r - 1 is earlier, too.")
    expect(got, rows[:, :, :h], case, "Output row r reads the rows r - 3, r - 2 and r - 1.")


_BLOCK = '''
    class TwoStackBlock(nn.Module):
        """One layer of the gated PixelCNN with p channels (van den Oord et al. 2016b, Figure 2)."""

        def __init__(self, p, slots):
            super().__init__()
            self.slots = slots
            self.vertical = nn.Conv2d(p, 2 * p, (2, 3), padding=(0, 1))
            self.vertical_to_horizontal = nn.Conv2d(2 * p, 2 * p, 1)
            self.horizontal = nn.Conv2d(p, 2 * p, 1)
            self.center = vqlib.MaskedConv2d("B", p, 2 * p, 1, slots=slots)
            self.horizontal_out = nn.Conv2d(p, p, 1, groups=slots)

        def halves(self, features):
            """(B, 2p, H, W) -> two (B, p, H, W), which take half of the channels of each slot."""
            a, b = features.unflatten(1, (self.slots, -1)).chunk(2, dim=2)
            return a.flatten(1, 2), b.flatten(1, 2)

        def above(self, v_stack):
            """Vertical features (B, 2p, H, W), from the rows r - 1 and r of v_stack."""
            return self.vertical(F.pad(v_stack, (0, 0, 1, 0)))

        def left(self, h_stack):
            """Horizontal features (B, 2p, H, W), from the left neighbor of each position."""
            return self.horizontal(F.pad(h_stack, (1, 0))[..., :-1])

        def forward(self, v_stack, h_stack, conditional_bias):
            """New v_stack and h_stack, float (B, p, H, W); conditional_bias is (B, 2p, 1, 1).

            Both stacks split their 2p features with `halves`. The first half goes through the tanh,
            the second through the sigmoid.
            """
'''


@task(
    "04",
    given=_BLOCK + "            ...\n",
    solution=_BLOCK
    + """\
            v_features = self.above(v_stack)
            h_features = self.left(h_stack) + self.center(h_stack) + conditional_bias
            h_features = h_features + self.vertical_to_horizontal(v_features)
            a, b = self.halves(v_features)
            v_out = a.tanh() * b.sigmoid()
            a, b = self.halves(h_features)
            h_out = self.horizontal_out(a.tanh() * b.sigmoid())
            return v_out, h_stack + h_out
    """,
    hints=(
        "Follow the arrows of the diagram. Four terms meet in the sum of the horizontal stack, and "
        "each has 2p channels.",
        "The gate is a.tanh() * b.sigmoid() with a, b = self.halves(features), once in each stack.",
        "vertical_to_horizontal reads self.above(v_stack), 2p channels before the gate. Only the "
        "horizontal stack has horizontal_out and a residual connection.",
    ),
    hides=("vqlib.pixelcnn.GatedBlock",),
)
def TwoStackBlock(answer):
    p, slots = 4, 2
    b, h, w = 2, 3, 4
    block = answer(p, slots)
    arguments = torch.randn(b, p, h, w), torch.randn(b, p, h, w), torch.randn(b, 2 * p, 1, 1)
    returned = block(*arguments)
    if returned is None:
        raise NotAttempted
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise Wrong("forward should return two tensors: the new v_stack and the new h_stack.")
    v_got, h_got = returned
    reference = _ReferenceBlock(p, slots)
    reference.load_state_dict(block.state_dict())
    v_right, h_right = reference(*arguments)
    case = f"v_stack and h_stack of shape {(b, p, h, w)}"
    if isinstance(v_got, Tensor) and v_got.shape == v_right.shape:
        for text, options in (
            ("The vertical stack has no residual connection in Figure 2.", {"v_residual": True}),
            ("In the vertical stack tanh and sigmoid are exchanged.", {"swapped": True}),
            ("The vertical stack is not gated by tanh and sigmoid.", {"first": torch.relu}),
            ("The gate has no tanh: this is a gated linear unit.", {"first": lambda x: x}),
            ("The vertical stack: did you split with `halves`?", {"halves": False}),
        ):
            if torch.allclose(v_got, reference(*arguments, **options)[0], rtol=1e-4, atol=1e-5):
                raise Wrong(text)
    expect(v_got, v_right, f"the new v_stack of {case}", "v_features, split and gated.")
    if isinstance(h_got, Tensor) and h_got.shape == h_right.shape:
        for text, options in (
            ("The residual connection of the horizontal stack is missing.", {"h_residual": False}),
            ("vertical_to_horizontal is missing: the rows above are not used.", {"v_to_h": 0.0}),
            ("The conditional bias is missing: the class is not used.", {"bias": 0.0}),
            ("The left neighbor is missing from the sum.", {"left": 0.0}),
            ("The center layer is missing from the sum.", {"center": 0.0}),
            (
                "The left neighbor is needed, not the position itself: self.left(h_stack).",
                {"shift": False},
            ),
            ("horizontal_out is missing in the horizontal stack.", {"out": False}),
            ("In the horizontal stack tanh and sigmoid are exchanged.", {"swapped": True}),
            ("The horizontal stack: did you split with `halves`?", {"halves": False}),
        ):
            if torch.allclose(h_got, reference(*arguments, **options)[1], rtol=1e-4, atol=1e-5):
                raise Wrong(text)
    idea = "Sum of four terms, gate, horizontal_out, residual connection."
    expect(h_got, h_right, f"the new h_stack of {case}", idea)


class _ReferenceBlock(nn.Module):
    def __init__(self, p: int, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.vertical = nn.Conv2d(p, 2 * p, (2, 3), padding=(0, 1))
        self.vertical_to_horizontal = nn.Conv2d(2 * p, 2 * p, 1)
        self.horizontal = nn.Conv2d(p, 2 * p, 1)
        self.center = MaskedConv2d("B", p, 2 * p, 1, slots=slots)
        self.horizontal_out = nn.Conv2d(p, p, 1, groups=slots)

    @torch.no_grad()
    def forward(
        self,
        v: Tensor,
        h: Tensor,
        conditional_bias: Tensor,
        *,
        v_residual=False,
        h_residual=True,
        swapped=False,
        first=torch.tanh,
        v_to_h=1.0,
        bias=1.0,
        left=1.0,
        center=1.0,
        shift=True,
        out=True,
        halves=True,
    ) -> tuple[Tensor, Tensor]:
        def gate(features: Tensor) -> Tensor:
            slots = self.slots if halves else 1
            a, b = features.unflatten(1, (slots, 2, -1)).unbind(2)
            a, b = (b, a) if swapped else (a, b)
            return (first(a) * b.sigmoid()).flatten(1, 2)

        v_features = self.vertical(F.pad(v, (0, 0, 1, 0)))
        neighbor = F.pad(h, (1, 0))[..., :-1] if shift else h
        gated = gate(
            left * self.horizontal(neighbor)
            + center * self.center(h)
            + bias * conditional_bias
            + v_to_h * self.vertical_to_horizontal(v_features)
        )
        gated = self.horizontal_out(gated) if out else gated
        v_out = gate(v_features)
        return v_out + v if v_residual else v_out, gated + h if h_residual else gated


@task(
    "04",
    given='''
    def drop_labels(labels, num_classes, p):
        """Label dropout: each label int64 (B,) becomes "no label" with probability p."""
        if torch.rand(()) < p:
            return torch.zeros_like(labels)
        return labels
    ''',
    solution='''
    def drop_labels(labels, num_classes, p):
        """Label dropout: each label int64 (B,) becomes "no label" with probability p."""
        dropped = torch.rand(labels.shape) < p
        return labels.masked_fill(dropped, num_classes)
    ''',
    hints=(
        'Which rows does the embedding of the labels have? One of them must mean "no label" and '
        "nothing else.",
        "Classes are 0 to num_classes - 1, so the free index is num_classes. And each example of "
        "the batch needs its own random number.",
        "torch.rand(labels.shape) < p is a mask; use masked_fill or torch.where.",
    ),
)
def drop_labels(answer):
    num_classes, n = int(torch.randint(3, 9, ())), 4000
    p = float(0.2 + 0.2 * torch.rand(()))
    labels = torch.randint(num_classes, (n,))
    got = answer(labels, num_classes, p)
    case = f"{n} labels in 0..{num_classes - 1} and p = {p:.2f}"
    expect(got, got.new_zeros(n) if isinstance(got, Tensor) else labels, case, "", atol=1e9)
    if got.dtype != torch.long:
        raise Wrong(f"For {case} the dtype should be torch.int64, not {got.dtype}.")
    if (got > num_classes).any() or (got < 0).any():
        raise Wrong(f"The embedding has rows 0 to {num_classes}; the result holds other indices.")
    batches = torch.stack([answer(labels[:50], num_classes, p) for _ in range(40)])
    changed = batches != labels[:50]
    used = batches[changed].unique()
    if len(used) and not torch.equal(used, torch.tensor([num_classes])):
        raise Wrong(
            f'Dropped labels become {used.tolist()}, which are classes; "no label" must have an '
            f"index of its own, {num_classes} here."
        )
    if (changed.all(1) | ~changed.any(1)).all():
        raise Wrong(
            "Within a batch all labels are dropped or none. Each needs its own random number."
        )
    share = float((got == num_classes).float().mean())
    if abs(share - p) > 0.06:
        keep = " That is 1 - p: is the comparison reversed?" if abs(share - 1 + p) < 0.06 else ""
        raise Wrong(f"For {case}: {share:.2f} of the labels were dropped.{keep}")
    again = answer(labels, num_classes, p)
    if torch.equal(got, again):
        raise Wrong("Two calls drop the same labels; each call needs new random numbers.")
    by_class = torch.stack(
        [(got[labels == c] == num_classes).float().mean() for c in labels.unique()]
    )
    if (by_class - p).abs().max() > 0.15:
        raise Wrong(
            "Some classes are dropped more often than others; the probability must be the same."
        )


add_quiz(
    "04.1",
    "Will samples from the per-position marginals look like lesions?",
    {
        "Yes, each code is as frequent as in lesions.": "Wrong. Frequencies at single "
        "positions do not say which codes occur together.",
        "No, neighboring codes do not fit together.": "Right. Borders and colors do not continue "
        "from one position to the next.",
        "No, they are as bad as random codes.": "Half right. Color and brightness are mostly "
        "typical, because the marginals know them.",
    },
)


add_quiz(
    "04.2",
    "The stack reaches 11 positions in each direction, on a grid of 8 x 8. Which of the earlier "
    "positions can the prediction at row 5, column 1 not use?",
    {
        "None: the stack reaches far enough.": "Wrong. The distance suffices, but not every "
        "direction is open in every row.",
        "Some positions above, on the right.": "Right. A path through masked kernels can go "
        "right only while it goes up.",
        "Some positions above, on the left.": "Wrong. A masked kernel reads to the left in every "
        "row, so all of these are reached.",
    },
)
