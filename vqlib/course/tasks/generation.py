"""Tasks of notebook 05: ancestral sampling, caching, temperature, top-p, guidance, completion."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..exercises import NotAttempted, Wrong, add_quiz, expect, task


class ToyPrior:
    """An autoregressive prior whose distribution is known exactly.

    It maps codes (n, *shape) to logits (n, *shape, K). Its code i depends on all earlier codes, in
    the order in which `shape` is flattened.

    Args:
        shape: of one sequence or grid.
        k: number of codes.
        is_rule: the first code is uniform, every other is certainly the one before plus 1, modulo
            K. Otherwise all distributions are random.
    """

    def __init__(self, shape: tuple[int, ...], k: int, is_rule: bool) -> None:
        self.shape, self.k, self.is_rule = shape, k, is_rule
        self.tables = [] if is_rule else [2 * torch.randn(k**i, k) for i in range(math.prod(shape))]

    def __call__(self, codes: Tensor) -> Tensor:
        flat = codes.flatten(1).long()
        if self.is_rule:
            logits = 60.0 * F.one_hot((flat.roll(1, 1) + 1) % self.k, self.k)
            logits[:, 0] = 0.0
        else:
            powers = self.k ** torch.arange(flat.shape[1])
            prefix = (flat * powers).cumsum(1) - flat * powers  # which sequence of earlier codes
            logits = torch.stack([t[prefix[:, i]] for i, t in enumerate(self.tables)], 1)
        return logits.unflatten(1, self.shape)

    def all_sequences(self) -> tuple[Tensor, Tensor]:
        """All K^L sequences, int64 (K^L, L), and their probabilities."""
        length = math.prod(self.shape)
        codes = torch.cartesian_prod(*[torch.arange(self.k)] * length).view(-1, length)
        logits = self(codes.view(-1, *self.shape)).flatten(1, -2).double()
        p = logits.log_softmax(-1).gather(-1, codes.unsqueeze(-1)).sum((1, 2)).exp()
        return codes, p


def _check_codes(codes: Tensor, shape: tuple[int, ...], k: int) -> None:
    if codes is None or codes is Ellipsis:
        raise NotAttempted
    if not isinstance(codes, Tensor) or codes.shape != shape or codes.dtype != torch.long:
        found = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, Tensor) else codes
        raise Wrong(f"The codes should be an int64 tensor of shape {shape}, not {found}.")
    if codes.min() < 0 or codes.max() >= k:
        raise Wrong(f"Codes should lie in 0..{k - 1}, got {codes.min()}..{codes.max()}.")


def _check_frequencies(codes: Tensor, prior: ToyPrior) -> None:
    """A chi-squared test that fails a correct sampler once in about ten million runs."""
    n, every = len(codes), prior.all_sequences()
    powers = prior.k ** torch.arange(every[0].shape[1]).flip(0)  # the order of cartesian_prod
    observed = torch.bincount((codes.flatten(1) * powers).sum(1), minlength=len(every[1]))
    frequent = n * every[1] > 5
    expected = n * every[1][frequent]
    chi2, degrees = ((observed[frequent] - expected) ** 2 / expected).sum(), int(frequent.sum())
    if chi2 > degrees + 7 * math.sqrt(2 * degrees) + 15:
        worst = ((observed - n * every[1]).abs() * frequent).argmax()
        raise Wrong(
            f"The frequencies differ from the prior's distribution: the codes "
            f"{every[0][worst].tolist()} have probability {every[1][worst]:.3f}, but "
            f"{observed[worst] / n:.3f} of {n:,} samples are these. Each code has to be sampled "
            "from the softmax, over all codes, of its own logits."
        )


@task(
    "05",
    given='''
    def sample_sequence(prior, n, length):
        """n sequences of codes, int64 (n, length); prior(codes) gives logits (n, length, K)."""
        codes = torch.zeros(n, length, dtype=torch.long)
        ...
        return codes
    ''',
    solution='''
    def sample_sequence(prior, n, length):
        """n sequences of codes, int64 (n, length); prior(codes) gives logits (n, length, K)."""
        codes = torch.zeros(n, length, dtype=torch.long)
        for i in range(length):
            p = prior(codes)[:, i].softmax(-1)
            codes[:, i] = torch.multinomial(p, 1)[:, 0]
        return codes
    ''',
    hints=(
        "A loop over positions. In each step the prior is called with what has been sampled so "
        "far; the zeros at later positions do not matter, because the prior is causal.",
        "Of the logits (n, length, K) one step needs those at its own position i only: (n, K).",
        "torch.multinomial(p, 1) samples one code from each row of p (n, K) and returns (n, 1).",
    ),
    hides=("vqlib.sampling.sample", "vqlib.sampling.sample_categorical"),
)
def sample_sequence(answer):
    prior = ToyPrior((6,), 5, is_rule=True)
    codes = answer(prior, 300, 6)
    _check_codes(codes, (300, 6), 5)
    if not codes.any():
        raise NotAttempted
    broken = (codes[:, 1:] != (codes[:, :-1] + 1) % 5).any(1)
    if broken.any():
        raise Wrong(
            "Under a test prior each code is certainly the one before it plus 1 (modulo 5), but a "
            f"sequence came out as {codes[broken][0].tolist()}. Is every code sampled from the "
            "logits of its own position, and written into the input before the next pass?"
        )
    if (codes == codes[0]).all():
        raise Wrong(
            f"All 300 sequences are {codes[0].tolist()}, although the prior gives the first code a "
            "uniform distribution. Taking the most probable code is not sampling."
        )
    single = torch.cat([answer(prior, 1, 6) for _ in range(20)])
    if (single[:, 1:] != (single[:, :-1] + 1) % 5).any():
        raise Wrong(
            "With n = 1 the codes do not follow the prior, though with n = 300 they do. Over which "
            "axis does the softmax go? It has to be the axis of the K codes."
        )
    prior = ToyPrior((4,), 3, is_rule=False)
    _check_frequencies(answer(prior, 20_000, 4), prior)


def _follow_rule(first: int, shape: tuple[int, int, int], k: int, order: Tensor) -> Tensor:
    """What the rule prior gives if the codes are sampled in another order."""
    codes = torch.zeros(math.prod(shape), dtype=torch.long)
    codes[0] = first
    for i in order[order > 0]:
        codes[i] = (codes[i - 1] + 1) % k
    return codes.view(shape)


@task(
    "05",
    given='''
    def sample_grid(prior, n, height, width, slots):
        """n grids of codes, int64 (n, height, width, slots)."""
        codes = torch.zeros(n, height, width, slots, dtype=torch.long)
        p = prior(codes).softmax(-1)  # (n, height, width, slots, K)
        sampled = torch.multinomial(p.flatten(0, 3), 1)
        return sampled.view(n, height, width, slots)
    ''',
    solution='''
    def sample_grid(prior, n, height, width, slots):
        """n grids of codes, int64 (n, height, width, slots)."""
        codes = torch.zeros(n, height, width, slots, dtype=torch.long)
        for row in range(height):
            for column in range(width):
                for slot in range(slots):
                    p = prior(codes)[:, row, column, slot].softmax(-1)
                    codes[:, row, column, slot] = torch.multinomial(p, 1)[:, 0]
        return codes
    ''',
    hints=(
        "Each code is sampled from its correct distribution given codes that are all 0. Given "
        "which codes should it be sampled?",
        "How often is the prior called? How often did sample_sequence call it?",
        "Three nested loops. The order must be the one in which the prior was trained: rows, in a "
        "row the positions, at a position the slots.",
    ),
    hides=("vqlib.sampling.sample", "vqlib.sampling.sample_categorical"),
)
def sample_grid(answer):
    shape, k = (2, 3, 2), 7
    prior = ToyPrior(shape, k, is_rule=True)
    codes = answer(prior, 100, *shape)
    _check_codes(codes, (100, *shape), k)
    if (codes == codes[0]).all():
        raise Wrong(
            "All 100 grids are equal, although the first code has a uniform distribution. Taking "
            "the most probable code is not sampling."
        )
    index = torch.arange(math.prod(shape)).view(shape)
    for grid in codes:
        first = int(grid.flatten()[0])
        right = _follow_rule(first, shape, k, index.flatten())
        one_pass = torch.ones(shape, dtype=torch.long)
        one_pass[0, 0, 0] = first
        mistakes = {
            "all codes come from one pass, so none depends on another. After a code is sampled, "
            "the prior has to be run again with this code in its input": one_pass,
            "the slots are in the outermost loop. The four slots of a position come directly "
            "after one another, before the next position": _follow_rule(
                first, shape, k, index.permute(2, 0, 1).flatten()
            ),
            "the columns are in the outer loop. Raster order goes through one row after the "
            "other": _follow_rule(first, shape, k, index.transpose(0, 1).flatten()),
        }
        for mistake, expected in mistakes.items():
            if torch.equal(grid, expected) and not torch.equal(grid, right):
                raise Wrong(f"It looks as if {mistake}.")
        expect(
            grid,
            right,
            "a test prior under which each code is the one before it plus 1 (modulo 7), in raster "
            "order, slots innermost",
            "Is each code sampled from its own logits, given all earlier codes?",
        )
    prior = ToyPrior((2, 1, 2), 3, is_rule=False)
    _check_frequencies(answer(prior, 20_000, 2, 1, 2), prior)


@task(
    "05",
    given='''
    def conv_step(window, x, weight, bias):
        """One step of a causal convolution.

        window: (n, C, k), the last k inputs, the newest one last. x: (n, C), the next input.
        weight: (out, C, k). bias: (out,).
        Returns the output at this step, (n, out), and the new window, (n, C, k).
        """
        ...
    ''',
    solution='''
    def conv_step(window, x, weight, bias):
        """One step of a causal convolution.

        window: (n, C, k), the last k inputs, the newest one last. x: (n, C), the next input.
        weight: (out, C, k). bias: (out,).
        Returns the output at this step, (n, out), and the new window, (n, C, k).
        """
        window = torch.cat([window[:, :, 1:], x[:, :, None]], dim=2)
        return window.flatten(1) @ weight.flatten(1).T + bias, window
    ''',
    hints=(
        "First make the new window: forget the oldest input, append the new one.",
        "torch.cat along the last axis: window[:, :, 1:] and x[:, :, None].",
        "The output is one matrix product: the flattened windows (n, C k) times the flattened "
        "weights (out, C k) transposed, plus the bias.",
    ),
)
def conv_step(answer):
    n, c, out, k, steps = *torch.randint(2, 5, (4,)).tolist(), 7
    weight, bias, x = torch.randn(out, c, k), torch.randn(out), torch.randn(n, c, steps)
    padded = F.pad(x, (k - 1, 0))
    full = F.conv1d(padded, weight, bias)
    window, start = torch.randn(n, c, k), x[:, :, 0]
    result = answer(window, start, weight, bias)
    if result is None or result is Ellipsis:
        raise NotAttempted
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong("Two values should be returned: the output at this step, and the new window.")
    new = torch.cat([window[:, :, 1:], start[:, :, None]], 2)
    if torch.is_tensor(result[1]) and result[1].shape == new.shape:
        if torch.equal(result[1], window):
            raise Wrong("The new window is the old one. It has to contain the new input, too.")
        if torch.equal(result[1], torch.cat([start[:, :, None], window[:, :, :-1]], 2)):
            raise Wrong("The new input came first in the window; the newest one has to be last.")
    expect(result[1], new, "the new window", "Drop the oldest input, append the new one.")
    mistakes = {
        "the output is computed from the window before the new input has entered it": (
            torch.einsum("nck,ock->no", window, weight) + bias
        ),
        "the kernel is reversed: weight[:, :, -1] belongs to the newest input": (
            torch.einsum("nck,ock->no", new.flip(2), weight) + bias
        ),
        "the bias is missing": torch.einsum("nck,ock->no", new, weight),
    }
    for mistake, value in mistakes.items():
        if torch.is_tensor(result[0]) and result[0].shape == value.shape:
            if torch.allclose(result[0], value, atol=1e-5):
                raise Wrong(f"It looks as if {mistake}.")
    window = torch.zeros(n, c, k)
    for t in range(steps):
        y, window = answer(window, x[:, :, t], weight, bias)
        expect(
            y,
            full[:, :, t],
            f"the output at step {t} of a convolution with a kernel of {k}",
            "It is the sum over the last k inputs and all channels, plus the bias.",
        )


@task(
    "05",
    given='''
    def tempered(logits, temperature):
        """Probabilities at this temperature: logits (n, K) -> (n, K)."""
        p = logits.softmax(-1) / temperature
        return p / p.sum(-1, keepdim=True)
    ''',
    solution='''
    def tempered(logits, temperature):
        """Probabilities at this temperature: logits (n, K) -> (n, K)."""
        return (logits / temperature).softmax(-1)
    ''',
    hints=(
        "Call it with two different temperatures and compare the results. Why do they not differ?",
        "All probabilities are divided by the same number, and the last line divides by their sum. "
        "So the odds p(a) / p(b) stay as they were.",
        "With logits, the odds are exp(l_a - l_b). What does the power 1 / T do to this exponent?",
    ),
    hides=("vqlib.sampling.filter_logits",),
)
def tempered(answer):
    logits = 2 * torch.randn(3, int(torch.randint(4, 9, (1,))))
    for temperature in (0.5, 2.0):
        p, expected = answer(logits, temperature), (logits / temperature).softmax(-1)
        case = f"logits {tuple(logits.shape)} at temperature {temperature}"
        if torch.is_tensor(p) and p.shape == expected.shape:
            if torch.allclose(p, logits.softmax(-1), atol=1e-5):
                raise Wrong(f"For {case} the temperature has no effect on the result.")
            if torch.allclose(p, (logits * temperature).softmax(-1), atol=1e-5):
                raise Wrong(
                    f"For {case} the odds change in the wrong direction: a low temperature should "
                    "make the most probable code more probable."
                )
            if not torch.allclose(p.sum(-1), torch.ones(p.shape[:-1]), atol=1e-4):
                raise Wrong(f"For {case} the probabilities do not sum to 1.")
        expect(p, expected, case, "Compare the odds of two codes before and after.")
    flat = 1 + torch.rand(3, 16)  # exp(flat / 0.01) and p ** (1 / 0.01) leave the range
    p = answer(flat, 0.01)
    if not p.isfinite().all():
        raise Wrong(
            "At temperature 0.01 the result contains NaN: powers of probabilities or exponentials "
            "of large numbers leave the range of float32. torch.softmax avoids that."
        )
    expect(p, (100 * flat).softmax(-1), "temperature 0.01", "Divide the logits.", rtol=1e-3)


@task(
    "05",
    given='''
    def nucleus(p, top_p):
        """Nucleus sampling: keep the smallest set of most probable codes whose total probability
        is at least top_p, and renormalize. p: (..., K) -> (..., K), 0 for excluded codes."""
        ...
    ''',
    solution='''
    def nucleus(p, top_p):
        """Nucleus sampling: keep the smallest set of most probable codes whose total probability
        is at least top_p, and renormalize. p: (..., K) -> (..., K), 0 for excluded codes."""
        ordered, order = p.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # total probability of the more probable codes
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        kept = torch.zeros_like(p).scatter(-1, order, ordered)
        return kept / kept.sum(-1, keepdim=True)
    ''',
    hints=(
        "Sort by probability and add up (cumsum). A code is excluded if the codes before it "
        "already reach top_p.",
        "The total before a code is the cumulative sum minus the code's own probability.",
        "Sorting changes the order of the codes: scatter the probabilities back with the indices "
        "that sort returns, and divide by the new sum.",
    ),
    hides=("vqlib.sampling.filter_logits",),
)
def nucleus(answer):
    order = torch.stack([torch.randperm(4), torch.tensor([2, 0, 3, 1])])
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])[order]
    for top_p, size in ((0.7, 2), (0.9, 3), (0.3, 1)):
        q, kept = answer(p, top_p), order < size
        expected = p * kept / (p * kept).sum(-1, keepdim=True)
        case = f"probabilities {[round(x, 2) for x in p[1].tolist()]} and top_p = {top_p}"
        if torch.is_tensor(q) and q.shape == p.shape:
            counts = (q > 0).sum(-1)
            sums = q.sum(-1)
            if q.isnan().any() or (counts < size).any():
                raise Wrong(
                    f"For {case}, {int(counts.min())} codes are left, but {size} are needed to "
                    f"reach {top_p}: the code that crosses the threshold belongs to the set."
                )
            if (counts > size).any():
                raise Wrong(
                    f"For {case}, {int(counts.max())} codes are left, but {size} already reach "
                    f"{top_p}: the set should be the smallest."
                )
            if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
                raise Wrong(f"For {case} the probabilities sum to {sums[1]:.2f}, not to 1.")
            if torch.allclose(q.sort(-1).values, expected.sort(-1).values, atol=1e-5):
                if not torch.allclose(q, expected, atol=1e-5):
                    raise Wrong(
                        f"For {case} the probabilities are right, but belong to other codes: undo "
                        "the sorting."
                    )
        expect(q, expected, case, "Keep codes until their total reaches top_p.")
    p = torch.rand(3, 2, 9).softmax(-1)
    ordered, order = p.sort(-1, descending=True)
    expected = torch.zeros_like(p).scatter(
        -1, order, ordered * (ordered.cumsum(-1) - ordered < 0.6)
    )
    expected /= expected.sum(-1, keepdim=True)
    expect(answer(p, 0.6), expected, "random p of shape (3, 2, 9)", "Each row has its own set.")


@task(
    "05",
    given='''
    def guided_logits(conditional, unconditional, guidance):
        """Classifier-free guidance with w = guidance: two tensors of logits (n, K) -> (n, K)."""
        ...
    ''',
    solution='''
    def guided_logits(conditional, unconditional, guidance):
        """Classifier-free guidance with w = guidance: two tensors of logits (n, K) -> (n, K)."""
        return unconditional + (1 + guidance) * (conditional - unconditional)
    ''',
    hints=(
        "Logits are log-probabilities up to a constant, and a softmax ignores a constant. "
        "Take the logarithm of p(k | y) p(y | k)^w.",
        "Replace p(y | k) by p(k | y) / p(k) first. The factor p(y) is the same for all codes.",
    ),
    hides=("vqlib.sampling.sample",),
)
def guided_logits(answer):
    c, u = 2 * torch.randn(2, 3, 7)
    result = answer(c, u, 0.0)
    if not isinstance(result, Tensor):
        expect(result, c, "guidance = 0", "")
    p0 = result.softmax(-1)
    if torch.allclose(p0, u.softmax(-1), atol=1e-5):
        if torch.allclose(answer(c, u, 1.0).softmax(-1), c.softmax(-1), atol=1e-5):
            raise Wrong(
                "This is p(k) p(y | k)^w, in which w = 1 gives the conditional distribution. In "
                "the definition above, w = 0 does."
            )
        raise Wrong(
            "For guidance = 0 the result is the unconditional distribution; it should be the "
            "conditional one. Are the two arguments exchanged?"
        )
    for w in (0.0, 0.5, 2.0):
        result = answer(c, u, w)
        if torch.allclose(result.softmax(-1), (c - w * (c - u)).softmax(-1), atol=1e-5) and w:
            raise Wrong(
                f"For guidance = {w} the result moves toward the unconditional distribution; it "
                "should move away from it. Look at the sign."
            )
        mixed = (1 + w) * c.softmax(-1) - w * u.softmax(-1)
        if torch.allclose(result, mixed, atol=1e-5):
            raise Wrong(
                f"For guidance = {w} probabilities are combined, which gives values as low as "
                f"{mixed.min():.2f}. A product of probabilities is a sum of logits."
            )
        expect(
            result.softmax(-1),
            ((1 + w) * c - w * u).softmax(-1),
            f"guidance = {w} (after a softmax)",
            "Take the logarithm of p(k | y) p(y | k)^w.",
        )


@task(
    "05",
    given='''
    def importance_weights(bits):
        """Weights of the candidates from the code lengths of the kept codes under the prior.

        bits: (n, candidates, kept codes), -log2 p of each -> (n, candidates), rows sum to 1.
        """
        likelihood = 2.0 ** -bits.sum(-1)
        return likelihood / likelihood.sum(-1, keepdim=True)
    ''',
    solution='''
    def importance_weights(bits):
        """Weights of the candidates from the code lengths of the kept codes under the prior.

        bits: (n, candidates, kept codes), -log2 p of each -> (n, candidates), rows sum to 1.
        """
        log_likelihood = -bits.sum(-1) * math.log(2)
        return log_likelihood.softmax(-1)
    ''',
    hints=(
        "The smallest positive number is 2 to the power of -149 in float32, and of -1074 in "
        "float64. How many bits do 128 codes of about 7 bits need?",
        "Multiplying all likelihoods of a row by one number does not change the weights. Which "
        "factor keeps the largest one in range?",
        "Subtract the smallest number of bits of each row before taking 2 to the power; or take "
        "the softmax of the log-likelihoods, which does the same.",
    ),
    hides=("vqlib.sampling.complete",),
)
def importance_weights(answer):
    def expected(bits):
        return (-bits.double().sum(-1) * math.log(2)).softmax(-1).float()

    bits = 3 * torch.rand(3, 5, 4)
    weights, right = answer(bits), expected(bits)
    case = f"bits of shape {tuple(bits.shape)}"
    mistakes = {
        "candidates with long codes are preferred: a long code is an unlikely one": (
            bits.sum(-1) * math.log(2)
        ).softmax(-1),
        "the mean of the bits is used. The likelihood of all kept codes is the product of their "
        "probabilities, so their code lengths are added": (-bits.mean(-1) * math.log(2)).softmax(
            -1
        ),
        "bits are used as if they were nats: one bit is a factor of 2, not of e": (
            -bits.sum(-1)
        ).softmax(-1),
        "the weights are normalized over the images. The candidates of one image sum to 1": (
            -bits.sum(-1) * math.log(2)
        ).softmax(0),
    }
    for mistake, value in mistakes.items():
        if torch.is_tensor(weights) and weights.shape == value.shape:
            if torch.allclose(weights.float(), value, atol=1e-5):
                raise Wrong(f"It looks as if {mistake}.")
    expect(weights, right, case, "The weight is proportional to 2 to the power of minus the bits.")
    for scale in (14, 60):
        bits = scale * (0.5 + 0.02 * torch.rand(2, 6, 128))
        weights, total = answer(bits), bits.sum(-1).mean()
        if not weights.isfinite().all():
            raise Wrong(
                f"For candidates of about {total:.0f} bits the weights are NaN: all likelihoods "
                "underflow to 0. Only their ratios matter, so rescale them before the power."
            )
        expect(weights, expected(bits), f"candidates of about {total:.0f} bits", "", atol=2e-3)


add_quiz(
    "05.1",
    "Greedy decoding with the unconditional prior. Which image does it give?",
    {
        "A typical mole, because most training lesions are moles.": "No. A whole mole may be "
        "typical, but greedy decoding chooses one code at a time. Which code is the more probable "
        "next one as long as no lesion has begun?",
        "A blurred average of the training lesions.": "No. Each code is chosen, not averaged, and "
        "the choice depends on the codes before it.",
        "Skin without a lesion.": "Right, as in the toy prior: at the places where a lesion could "
        "begin, more skin is the more probable next step, so none begins.",
    },
)


add_quiz(
    "05.2",
    "Lower half kept, upper half sampled in raster order. What happens at the boundary?",
    {
        "Nothing: the sampler respects all kept codes.": "Not quite. It leaves them unchanged, "
        "but no sampled code depends on them, because they come later in the order.",
        "In most images the halves do not fit together.": "Right. The upper half is sampled "
        "as if nothing were below it.",
        "It raises an error.": "No. The kept codes are valid input, but a causal prior does not "
        "use codes that come later.",
    },
)
