"""Tasks of notebook 06: PSNR of a set, code length, a linear codec, a byte budget, paired
comparisons, and arithmetic coding."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from ..exercises import NotAttempted, Wrong, add_quiz, expect, task


@task(
    "06",
    given='''
    def mean_psnr(images, targets):
        """Mean over the images of their PSNR in dB. Both arguments: float (B, 3, H, W), pixels in
        [0, 1]. Returns a float tensor without dimensions."""
        difference = 255 * (images - targets)  # 8-bit images have values from 0 to 255
        mse = difference.pow(2).mean()
        return 10 * torch.log10(1 / mse)
    ''',
    solution='''
    def mean_psnr(images, targets):
        """Mean over the images of their PSNR in dB. Both arguments: float (B, 3, H, W), pixels in
        [0, 1]. Returns a float tensor without dimensions."""
        mse = (images - targets).pow(2).mean((1, 2, 3))
        return 10 * torch.log10(1 / mse).mean()
    ''',
    hints=(
        "A PSNR of a usable image is never negative. Which peak belongs to errors in units of "
        "1/255?",
        "With the peak repaired, look at the word *mean*: which quantity should be averaged over "
        "the images, the MSE or the PSNR?",
        "Average the squared error over the dimensions 1, 2 and 3 only, take the logarithm of the "
        "B values, and average last.",
    ),
    hides=("vqlib.metrics.psnr",),
)
def mean_psnr(answer):
    b = int(torch.randint(3, 6, ()))
    targets = torch.rand(b, 3, 6, 8)
    images = (
        targets + torch.logspace(-2.5, -0.7, b).view(b, 1, 1, 1) * torch.randn(b, 3, 6, 8)
    ).clamp(0, 1)
    mse = (images - targets).pow(2).mean((1, 2, 3))
    expected = 10 * torch.log10(1 / mse).mean()
    result = answer(images, targets)
    case = f"{b} images with errors of different size"
    if isinstance(result, torch.Tensor) and result.shape == (b,):
        raise Wrong(f"For {case}: these are the {b} values, one for each image. Return their mean.")
    if isinstance(result, torch.Tensor) and result.numel() == 1:
        pooled = 10 * torch.log10(1 / mse.mean())
        peak = 20 * math.log10(255)
        if torch.isclose(result, pooled, atol=1e-3):
            raise Wrong(
                f"For {case}: {pooled:.2f} dB is the PSNR of the mean MSE, expected "
                f"{expected:.2f} dB. The mean of the PSNR values is another number: average over "
                "the images after the logarithm."
            )
        if min(abs(result - pooled + peak), abs(result - expected + peak)) < 1e-3:
            raise Wrong(
                f"For {case}: {result:.2f} dB is {peak:.2f} dB too low. The error is in units of "
                "1/255 and the peak in units of 1: use the same unit for both."
            )
        if torch.isclose(result, torch.log(1 / mse).mean() * 10, rtol=1e-3):
            raise Wrong(
                f"For {case}: decibels use the logarithm to base 10, this is the natural one."
            )
    expect(result, expected, case, "PSNR = 10 log10(peak² / MSE), for each image.")


def reference_code_length(codes, tables):
    """Ideal code length of each sequence in bits, see the task `code_length`."""
    return -tables.log2()[torch.arange(codes.shape[1]), codes].sum(1)


@task(
    "06",
    given='''
    def code_length(codes, tables):
        """Ideal code length of each sequence in bits: codes, int64 (B, N), and tables of
        probabilities, float (N, K), one table for each position -> float (B,)."""
        ...
    ''',
    solution='''
    def code_length(codes, tables):
        """Ideal code length of each sequence in bits: codes, int64 (B, N), and tables of
        probabilities, float (N, K), one table for each position -> float (B,)."""
        p = tables[torch.arange(codes.shape[1]), codes]  # (B, N)
        return -p.log2().sum(1)
    ''',
    hints=(
        "A code of probability p has the length -log2 p. First find the (B, N) probabilities of "
        "the codes that occur.",
        "Advanced indexing picks them: tables[positions, codes], where positions = "
        "torch.arange(N) is broadcast over the B sequences.",
        "The lengths of the codes of one sequence add up.",
    ),
)
def code_length(answer):
    b, n, k = torch.randint(3, 9, (3,)).tolist()
    k += n  # no two dimensions are equal
    tables = torch.rand(n, k) + 0.05
    tables /= tables.sum(1, keepdim=True)
    codes = torch.randint(k, (b, n))
    p = torch.stack([tables[i, codes[:, i]] for i in range(n)], 1)
    expected = reference_code_length(codes, tables)
    result = answer(codes, tables)
    case = f"{b} sequences of {n} codes, K = {k}"
    if isinstance(result, torch.Tensor) and result.shape == expected.shape:
        for value, message in (
            (-p.log().sum(1), "These are nats, from the natural logarithm. Bits need base 2."),
            (-p.log10().sum(1), "This is the logarithm to base 10. Bits need base 2."),
            (expected / n, "This is the mean length of a code. A file holds all codes: add them."),
            (
                -expected,
                "The sign is wrong: probabilities are below 1, so their logarithm is negative.",
            ),
            (expected / 8, "These are bytes. The task asks for bits."),
            (
                torch.special.entr(tables).sum().div(math.log(2)).expand(b),
                "This is the entropy of the tables, the expected length. The length of these "
                "sequences depends on the codes that occur.",
            ),
        ):
            if torch.allclose(result, value, rtol=1e-3):
                raise Wrong(f"For {case}: {message}")
    expect(result, expected, case, "Add -log2 of the probability of each code that occurs.")


def reference_linear_codec(patches, mean, components, step):
    """Coded integers and reconstructed patches, see the task `linear_codec`."""
    indices = ((patches - mean) @ components.T / step).round().long()
    return indices, indices * step @ components + mean


@task(
    "06",
    given='''
    def linear_codec(patches, mean, components, step):
        """Transform, quantize and reconstruct: patches, float (N, D); their mean (D,); orthonormal
        components (C, D), one in each row; quantization step in units of a pixel value.
        Returns the coded integers, int64 (N, C), and reconstructed patches, float (N, D)."""
        ...
    ''',
    solution='''
    def linear_codec(patches, mean, components, step):
        """Transform, quantize and reconstruct: patches, float (N, D); their mean (D,); orthonormal
        components (C, D), one in each row; quantization step in units of a pixel value.
        Returns the coded integers, int64 (N, C), and reconstructed patches, float (N, D)."""
        coefficients = (patches - mean) @ components.T
        indices = (coefficients / step).round().long()
        return indices, indices * step @ components + mean
    ''',
    hints=(
        "The coefficient of a component is its dot product with the patch, after the mean has been "
        "subtracted: one matrix product gives all (N, C).",
        "Quantize: divide by the step and round to the nearest integer, `.round().long()`.",
        "Back: multiply the integers by the step, add up the components with these weights (a "
        "matrix product), and add the mean. The inverse of orthonormal rows is the transpose.",
    ),
)
def linear_codec(answer):
    for c, d in ((4, 9), (7, 7)):
        n, step = int(torch.randint(11, 15, ())), float(0.2 + 0.4 * torch.rand(()))
        components = torch.linalg.qr(torch.randn(d, d))[0][:c]
        patches, mean = 2 * torch.randn(n, d), 1 + torch.rand(d)
        coefficients = (patches - mean) @ components.T
        expected, rebuilt = reference_linear_codec(patches, mean, components, step)
        result = answer(patches, mean, components, step)
        if result is None or result is Ellipsis:
            raise NotAttempted
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Wrong("Return two things: the coded integers and the patches.")
        indices, decoded = result
        case = f"{n} patches of {d} values, {c} components, step {step:.2f}"
        if isinstance(indices, torch.Tensor) and indices.shape == expected.shape:
            _look_at_indices(indices, coefficients, patches, mean, components, step, case)
        expect(indices, expected, f"{case}: the coded integers", "Round to the nearest.")
        if isinstance(decoded, torch.Tensor) and decoded.shape == rebuilt.shape:
            for value, message in (
                (rebuilt - mean, "the mean is missing from the reconstruction: add it back."),
                (
                    expected.float() @ components + mean,
                    "the integers are not multiplied by the step.",
                ),
                (
                    coefficients @ components + mean,
                    "these patches come from the coefficients before quantization. "
                    "The decoder only has the integers.",
                ),
            ):
                if torch.allclose(decoded, value, atol=1e-4):
                    raise Wrong(f"For {case}: {message}")
        idea = "The decoder multiplies the integers by the step, then by the components."
        expect(decoded, rebuilt, f"{case}: the reconstruction", idea)


def _look_at_indices(indices, coefficients, patches, mean, components, step, case):
    def matches(values):
        return torch.equal(indices, values)

    if matches((coefficients / step).round().long()):
        return
    if indices.is_floating_point():
        raise Wrong(f"For {case}: the coded integers should be int64, not {indices.dtype}.")
    if matches((patches @ components.T / step).round().long()):
        raise Wrong(f"For {case}: the mean was not subtracted before the projection.")
    if components.shape[0] == components.shape[1] and matches(
        ((patches - mean) @ components / step).round().long()
    ):
        raise Wrong(
            f"For {case}: the components are the rows. This projects on the columns, which is an "
            "error only if there are fewer components than values."
        )
    if matches((coefficients / step).long()) or matches((coefficients / step).floor().long()):
        raise Wrong(
            f"For {case}: the coefficients are truncated, which doubles the largest error. Round "
            "them to the nearest integer."
        )
    if matches((coefficients * step).round().long()):
        raise Wrong(f"For {case}: a larger step should give smaller integers. Divide by the step.")


@task(
    "06",
    given='''
    def highest_quality(encode, budget, header=0):
        """The highest quality setting whose file is within the budget.

        encode: function from a quality, an integer from 0 to 100, to a file (bytes).
        budget: maximum number of bytes; the first `header` bytes of a file are not counted.
        Returns (quality, file), or None if no file is small enough."""
        low, high = 0, 100
        while low < high:
            middle = (low + high + 1) // 2
            if len(encode(middle)) - header <= budget:
                low = middle
            else:
                high = middle - 1
        return low, encode(low)
    ''',
    solution='''
    def highest_quality(encode, budget, header=0):
        """The highest quality setting whose file is within the budget.

        encode: function from a quality, an integer from 0 to 100, to a file (bytes).
        budget: maximum number of bytes; the first `header` bytes of a file are not counted.
        Returns (quality, file), or None if no file is small enough."""
        for quality in range(100, -1, -1):
            file = encode(quality)
            if len(file) - header <= budget:
                return quality, file
        return None
    ''',
    hints=(
        "Look at the files between the one found and the right end of the figure: what does a "
        "bisection conclude from a file that is too large?",
        "A scan over all 101 settings, from the highest to the lowest, may stop at the first file "
        "that fits.",
        "The test is len(file) - header <= budget. If the loop ends, no file fits: return None.",
    ),
)
def highest_quality(answer):
    for case, sizes, budget, header in _budget_cases():
        files = [bytes(size) for size in sizes]
        result = answer(files.__getitem__, budget, header)
        if result is Ellipsis:
            raise NotAttempted
        fitting = [q for q, size in enumerate(sizes) if size - header <= budget]
        if not fitting:
            if result is not None:
                raise Wrong(f"For {case}: expected None, got {_short(result)}.")
            continue
        best = fitting[-1]
        if result is None:
            raise Wrong(f"For {case}: quality {best} fits, but the answer is None.")
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Wrong("Return two things: the quality and the file.")
        quality, file = result
        if quality != best:
            counted = [
                f"{sizes[q] - header} at quality {q}" for q in (quality, best) if 0 <= q <= 100
            ]
            raise Wrong(
                f"For {case}: expected quality {best}, got {quality}. Counted bytes: "
                f"{', '.join(counted)}, budget {budget}."
            )
        if file != files[best]:
            raise Wrong(f"For {case}: the quality is right, the file is that of another quality.")


def _short(result):
    return f"quality {result[0]}" if isinstance(result, tuple | list) else repr(result)


def _budget_cases():
    grow = (40 + torch.cumsum(torch.randint(1, 9, (101,)), 0)).tolist()
    middle = int(torch.randint(30, 60, ()))
    yield "sizes that grow with the quality", grow, grow[middle] + 0, 0
    yield "a budget one byte below a size", grow, grow[middle] - 1, 0
    yield "a header that is not counted", grow, grow[middle] - 37, 37
    best, bumps = int(torch.randint(60, 80, ())), list(grow)
    for q in range(45, 56):  # where a bisection looks first
        bumps[q] = grow[best] + 5
    yield "sizes that do not always grow", bumps, grow[best], 0
    yield "a budget that every file fits", grow, grow[100], 0
    yield "a budget that only quality 0 fits", grow, grow[0], 0
    yield "a budget that no file fits", grow, grow[0] - 1, 0


@task(
    "06",
    given='''
    def difference_interval(ours, theirs):
        """Mean difference of two methods on the same images, with its 95 % interval: dB values,
        float (n,) each, NaN where a method has no file. Returns (mean, low, high)."""

        def mean_and_error(values):
            values = values[~values.isnan()]
            return values.mean(), values.std() / len(values) ** 0.5

        mean_ours, error_ours = mean_and_error(ours)
        mean_theirs, error_theirs = mean_and_error(theirs)
        mean = mean_ours - mean_theirs
        error = (error_ours**2 + error_theirs**2).sqrt()
        return mean, mean - 1.96 * error, mean + 1.96 * error
    ''',
    solution='''
    def difference_interval(ours, theirs):
        """Mean difference of two methods on the same images, with its 95 % interval: dB values,
        float (n,) each, NaN where a method has no file. Returns (mean, low, high)."""
        difference = ours - theirs
        difference = difference[~difference.isnan()]
        mean = difference.mean()
        error = difference.std() / len(difference) ** 0.5
        return mean, mean - 1.96 * error, mean + 1.96 * error
    ''',
    hints=(
        "Both methods compressed the same images. Which number can you compute for a single image?",
        "Take the difference for each image first. Its standard deviation does not contain the "
        "variation between easy and difficult images.",
        "NaN in one of the two gives NaN in the difference: one mask removes the image for both.",
    ),
    hides=("vqlib.metrics.paired_bootstrap_interval",),
)
def difference_interval(answer):
    for missing in (0, 9):
        n = int(torch.randint(200, 260, ()))
        theirs = 30 + 3 * torch.randn(n)
        ours = theirs + 0.4 + 0.5 * torch.randn(n)
        ours[theirs.argsort()[:missing]] = torch.nan  # no file for the difficult images
        difference = (ours - theirs)[~ours.isnan()]
        mean, error = difference.mean(), difference.std() / len(difference) ** 0.5
        case = f"{n} images" + (f", {missing} of them without a file" if missing else "")
        result = answer(ours.clone(), theirs.clone())
        if result is None or result is Ellipsis:
            raise NotAttempted
        if not isinstance(result, tuple | list) or len(result) != 3:
            raise Wrong("Return three numbers: the mean difference and both ends of its interval.")
        got, low, high = (float(value) for value in result)
        if math.isnan(got) or math.isnan(low) or math.isnan(high):
            raise Wrong(f"For {case}: the result is NaN. Leave out images without a file.")
        if abs(got - mean) > 1e-3:
            if abs(got - (ours.nanmean() - theirs.nanmean())) < 1e-3:
                raise Wrong(
                    f"For {case}: {got:.2f} dB is the difference of two means over different "
                    f"images, expected {mean:.2f} dB. Compare both methods on the images that both "
                    "have."
                )
            expect(got, float(mean), case, "Average ours - theirs over the images.", atol=1e-3)
        half, right = (high - low) / 2, float(1.96 * error)
        both = ~ours.isnan()
        independent = float(1.96 * ((ours[both].var() + theirs[both].var()) / both.sum()).sqrt())
        if abs(half / independent - 1) < 0.1:
            raise Wrong(
                f"For {case}: the interval is ± {half:.2f} dB, as for two independent sets of "
                f"images; paired it is ± {right:.2f} dB. Take the difference for each image before "
                "its standard deviation."
            )
        if abs(half / (right * len(difference) ** 0.5) - 1) < 0.1:
            raise Wrong(
                f"For {case}: this is the spread of single images. The error of a mean of n is "
                "smaller by the factor √n."
            )
        if abs(half / (right / 1.96) - 1) < 0.1:
            raise Wrong(f"For {case}: this is one standard error, which covers 68 %, not 95 %.")
        if abs(half / right - 1) > 0.1 or abs((high + low) / 2 - mean) > 0.2 * right:
            raise Wrong(
                f"For {case}: expected {mean - right:.3f} to {mean + right:.3f}, got {low:.3f} to "
                f"{high:.3f}. The interval is the mean ± 1.96 standard errors."
            )


def reference_narrow(low, width, counts, symbol):
    """One step of arithmetic coding, see the task `narrow`."""
    total = sum(counts)
    return low + width * sum(counts[:symbol]) / total, width * counts[symbol] / total


@task(
    "06",
    given='''
    def narrow(low, width, counts, symbol):
        """The part of the interval [low, low + width) that belongs to a symbol. Symbol i has the
        share counts[i] / sum(counts) of it, and symbols follow each other in order.
        low, width: Fraction; counts: list of int. Returns the new (low, width) as Fractions."""
        ...
    ''',
    solution='''
    def narrow(low, width, counts, symbol):
        """The part of the interval [low, low + width) that belongs to a symbol. Symbol i has the
        share counts[i] / sum(counts) of it, and symbols follow each other in order.
        low, width: Fraction; counts: list of int. Returns the new (low, width) as Fractions."""
        total = sum(counts)
        return low + width * sum(counts[:symbol]) / total, width * counts[symbol] / total
    ''',
    hints=(
        "The figure above shows two steps. What is the new width, as a fraction of the old one?",
        "The new low is the old one plus the shares of all symbols before this one: "
        "sum(counts[:symbol]), without the symbol itself. These shares are parts of the old width, "
        "not of 1.",
        "Multiply by the Fraction `width` first and divide last: an int divided by an int is a "
        "float, which is not exact.",
    ),
)
def narrow(answer):
    for k in (3, 5, 8):
        counts = torch.randint(1, 9, (k,)).tolist()
        low, denominator = Fraction(int(torch.randint(1, 9, ())), 17), 23
        width = Fraction(int(torch.randint(1, 9, ())), denominator)
        for symbol in (k // 2, 0, k - 1):
            result = answer(low, width, counts, symbol)
            if result is None or result is Ellipsis:
                raise NotAttempted
            if not isinstance(result, tuple | list) or len(result) != 2:
                raise Wrong("Return two things: the new low and the new width.")
            case = f"[{low}, {low} + {width}), counts {counts}, symbol {symbol}"
            _look_at_interval(result, low, width, counts, symbol, case)


def _look_at_interval(result, low, width, counts, symbol, case):
    expected = reference_narrow(low, width, counts, symbol)
    before, total = sum(counts[:symbol]), sum(counts)
    if any(isinstance(value, float) for value in result):
        raise Wrong(
            f"For {case}: the result is a float, and its 53 bits are used up after a few codes. "
            "Multiply the Fraction by the counts before you divide by their sum."
        )
    new_low, new_width = result
    if new_width != expected[1]:
        if new_width == Fraction(counts[symbol], total):
            raise Wrong(f"For {case}: the new width is a share of the old width, not of 1.")
        if new_width == expected[1] + expected[0]:
            raise Wrong(f"For {case}: this is the end of the interval. Return its width.")
        raise Wrong(f"For {case}: expected the width {expected[1]}, got {new_width}.")
    if new_low != expected[0]:
        if new_low == low + width * (before + counts[symbol]) / total:
            raise Wrong(
                f"For {case}: the new low is the end of the symbol's part. Add the shares of the "
                "symbols before it, without its own."
            )
        if new_low == low + Fraction(before, total):
            raise Wrong(f"For {case}: the shares before the symbol are shares of the old width.")
        raise Wrong(f"For {case}: expected the new low {expected[0]}, got {new_low}.")


def reference_encode(codes, num_embeddings, low, width):
    """Adaptive arithmetic coding, see the task `encode_adaptive`."""
    counts = [1] * num_embeddings
    for code in codes:
        low, width = reference_narrow(low, width, counts, code)
        counts[code] += 1
    return low, width


def _decode(value, length, num_embeddings):
    """The codes that a decoder with adaptive counts reads from a number in [0, 1)."""
    low, width, counts, codes = Fraction(0), Fraction(1), [1] * num_embeddings, []
    for _ in range(length):
        target, code = (value - low) / width * sum(counts), 0
        while code < num_embeddings - 1 and sum(counts[: code + 1]) <= target:
            code += 1
        codes.append(code)
        low, width = reference_narrow(low, width, counts, code)
        counts[code] += 1
    return codes


@task(
    "06",
    given='''
    def encode_adaptive(codes, num_embeddings, low, width):
        """Arithmetic coding with the counts of the codes so far. codes: list of int from 0 to
        num_embeddings - 1; low, width: the interval at the start, as Fractions.
        Returns the final (low, width); `decode_adaptive` reads the codes from it."""
        counts = [1] * (max(codes) + 1)  # each code once, so that no probability is 0
        for code in codes:
            counts[code] += 1
            low, width = narrow(low, width, counts, code)
        return low, width
    ''',
    solution='''
    def encode_adaptive(codes, num_embeddings, low, width):
        """Arithmetic coding with the counts of the codes so far. codes: list of int from 0 to
        num_embeddings - 1; low, width: the interval at the start, as Fractions.
        Returns the final (low, width); `decode_adaptive` reads the codes from it."""
        counts = [1] * num_embeddings  # each code once, so that no probability is 0
        for code in codes:
            low, width = narrow(low, width, counts, code)
            counts[code] += 1
        return low, width
    ''',
    hints=(
        "At the first code, write down the counts that the encoder uses and those that the decoder "
        "uses.",
        "The decoder knows a code only after it has decoded it. Which line of the encoder uses a "
        "code earlier than that?",
        "Both sides must change their counts at the same moment: after the code. And both must "
        "start with the same counts: how many does each side have?",
    ),
)
def encode_adaptive(answer):
    for all_codes_occur in (True, False):
        k, n = int(torch.randint(4, 7, ())), 24
        # Skewed, so that adapting matters; first with every code, then without the largest.
        codes = torch.multinomial(torch.logspace(0, -1, k), n, replacement=True).tolist()
        if all_codes_occur:
            codes[3 : 3 + k] = range(k)
        else:
            codes = [code % (k - 2) for code in codes]
        start = Fraction(0), Fraction(1)
        result = answer(list(codes), k, *start)
        if result is None or result is Ellipsis:
            raise NotAttempted
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Wrong("Return two things: the final low and the final width.")
        case = f"{n} codes from 0 to {k - 1}"
        low, width = result
        if (low, width) == reference_encode(codes, k, *start):
            continue
        if width <= 0:
            raise Wrong(f"For {case}: the final interval is empty.")
        if (low, width) == reference_encode(codes, max(codes) + 1, *start):
            raise Wrong(
                f"For {case}: the largest code of this image is {max(codes)}, and the encoder has "
                "counts up to this code only. The decoder does not know it before it has decoded "
                "the image."
            )
        itself, fixed, future = start, start, start
        running, whole = [1] * k, [1 + codes.count(code) for code in range(k)]
        for code in codes:
            running[code] += 1
            itself = reference_narrow(*itself, running, code)
            fixed = reference_narrow(*fixed, [1] * k, code)
            future = reference_narrow(*future, whole, code)
        decoded = _decode(low, n, k)
        first = next((i for i in range(n) if decoded[i] != codes[i]), n)
        for wrong, message in (
            (itself, "The encoder conditions each code on the code itself, which the decoder does "
             "not know yet."),
            (fixed, "The counts never change, but the decoder counts each code after decoding it."),
            (future, "The counts are those of the whole image: the decoder would need the future."),
        ):  # fmt: skip
            if (low, width) == wrong:
                raise Wrong(
                    f"For {case}: code {first} is the first that is decoded wrongly. {message}"
                )
        raise Wrong(
            f"For {case}: the decoder reads {first} codes correctly, then "
            f"{decoded[first : first + 3]} instead of {codes[first : first + 3]}. Both sides must "
            "use the same counts for each code."
        )


add_quiz(
    "06.1",
    "Code 1 has probability 1/2, code 2 has 1/8. How many bits do they need together?",
    {
        "4": "Right: 1 + 3. The joint probability is 1/16, and -log2 of it is 4.",
        "about 0.68": "No. This is -log2 of the sum of the probabilities.",
        "2": "No. This is the mean of the two lengths, 1 and 3 bits. A file needs their sum.",
        "18": "No. 9 bits per code is the length without any knowledge of probabilities.",
    },
)


add_quiz(
    "06.2",
    "At 288 bytes an image, which patches give the highest PSNR?",
    {
        "8 x 8, because small patches are simple": "No. 1,024 patches share 2,304 bits: about "
        "two bits for each patch, so only the mean color can be coded.",
        "32 x 32, because neighboring pixels are redundant": "Right. A larger patch uses "
        "correlations over longer distances, and 64 patches get 36 bits each.",
        "it makes no difference": "No. Principal components remove the correlation within a "
        "patch only.",
    },
)


add_quiz(
    "06.3",
    "Which of the two models loses more PSNR by its quantizer?",
    {
        "the conventional model": "No. Its network is the limit: without the quantizer it gains "
        "only 0.3 dB.",
        "the deep model": "Right. Without the quantizer it reaches 41.1 dB, with 288 bytes "
        "34.8 dB.",
        "both the same, because the quantizers are equal": "No. The loss depends on how much "
        "information the features carry.",
    },
)
