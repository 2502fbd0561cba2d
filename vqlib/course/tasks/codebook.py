"""Tasks of notebook 03: codes as bytes, perplexity, usage, mutual information, restarts, a start
by k-means, and the order of the channels."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...codes import pack_codes
from ...quantizer import count_codes, perplexity
from ..exercises import Wrong, add_quiz, expect, task


@task(
    "03",
    given='''
    def pack_bits(codes, bits):
        """Codes, tensor int64 (N,), to bytes, NumPy array uint8 (ceil(N * bits / 8),), without
        unused bits between them. The most significant bit of each code comes first."""
        ...
    ''',
    solution='''
    def pack_bits(codes, bits):
        """Codes, tensor int64 (N,), to bytes, NumPy array uint8 (ceil(N * bits / 8),), without
        unused bits between them. The most significant bit of each code comes first."""
        shifts = np.arange(bits - 1, -1, -1)
        table = codes.numpy()[:, None] >> shifts & 1
        return np.packbits(table.astype(np.uint8))
    ''',
    hints=(
        "First make a table of bits: one row per code, one column per bit.",
        "Bit number i of a code is `code >> i & 1`. The first column holds the highest bit, i = "
        "bits - 1.",
        "`np.packbits` turns the table (as uint8) into bytes: it reads the rows one after another "
        "and fills the last byte with zeros.",
    ),
    hides=("vqlib.codes.pack_codes",),
)
def pack_bits(answer):
    for count, bits in ((256, 9), (3, 9), (5, 3), (4, 12)):
        codes = torch.randint(2**bits, (count,))
        codes[0], codes[-1] = 1, 2**bits - 2
        expected = torch.from_numpy(pack_codes(codes, bits))
        result = answer(codes, bits)
        if result is not None and result is not Ellipsis:
            result = np.asarray(result)
            _look_at_bytes(result, codes, bits, len(expected))
            result = torch.from_numpy(result)
        case = f"{count} codes of {bits} bits"
        expect(result, expected, case, "Write the bits of two codes on paper, one after the other.")


def _look_at_bytes(result: np.ndarray, codes: Tensor, bits: int, expected_length: int) -> None:
    if result.dtype != np.uint8:
        raise Wrong(f"Bytes have the dtype uint8, not {result.dtype}.")
    table = codes.numpy()[:, None] >> np.arange(bits) & 1
    if result.shape == (len(codes) * bits,):
        raise Wrong("This is the table of bits, one byte per bit. Pack eight bits into a byte.")
    if result.shape == (len(codes),):
        raise Wrong(
            f"One byte per code: a byte has 8 bits and cannot hold a code of {bits} bits."
            if bits > 8
            else f"One byte per code leaves {8 - bits} of 8 bits unused."
        )
    if result.shape == (len(codes) * -(-bits // 8),) and bits % 8:
        raise Wrong(
            f"{len(result)} bytes: each code starts a new byte. Expected {expected_length} bytes, "
            "so a code may begin in one byte and end in the next."
        )
    if np.array_equal(result, np.packbits(table.astype(np.uint8))):
        raise Wrong("Each code starts with its least significant bit: reverse the columns.")


@task(
    "03",
    given='''
    def code_perplexity(counts):
        """Perplexity of the codes: int64 (..., K), how often each code was used -> float (...)."""
        ...
    ''',
    solution='''
    def code_perplexity(counts):
        """Perplexity of the codes: int64 (..., K), how often each code was used -> float (...)."""
        p = counts / counts.sum(-1, keepdim=True)
        bits = -(p * p.clamp_min(1e-12).log2()).sum(-1)
        return 2**bits
    ''',
    hints=(
        "Three steps: relative frequencies, entropy, exponential.",
        "0 log 0 is NaN in floating point, but its limit is 0. `torch.special.entr(p)` is -p ln p "
        "with this limit.",
        "The base of the power must be that of the logarithm: exp with log, 2** with log2.",
    ),
    hides=("vqlib.quantizer.perplexity",),
)
def code_perplexity(answer):
    with_zeros = torch.randint(1, 60, (3, 20))
    with_zeros[:, ::4] = 0
    for counts in (torch.randint(1, 60, (2, 3, 12)), with_zeros, torch.tensor([40, 0, 0])):
        expected = perplexity(counts)
        result = answer(counts)
        if isinstance(result, Tensor) and result.shape == expected.shape:
            _look_at_perplexity(result, expected, counts)
        case = f"counts of shape {tuple(counts.shape)}"
        expect(result, expected, case, "K equally frequent codes have the perplexity K.", rtol=1e-3)


def _look_at_perplexity(result: Tensor, expected: Tensor, counts: Tensor) -> None:
    nats = expected.log()

    def equals(other: Tensor) -> bool:
        return torch.allclose(result.float(), other, rtol=1e-3, atol=1e-4)

    if result.isnan().any() and (counts == 0).any():
        raise Wrong("NaN for codes that are never used: 0 log 0 counts as 0 in an entropy.")
    if (expected > 1.01).all():
        if equals(nats) or equals(nats / math.log(2)):
            raise Wrong("This is the entropy. The perplexity is its exponential.")
        if equals((nats / math.log(2)).exp()) or equals(2**nats):
            raise Wrong(
                "Two bases are mixed: an entropy in bits belongs to a power of 2, an entropy from "
                "the natural logarithm to a power of e."
            )
        if equals(1 / expected):
            raise Wrong("This is 1 / perplexity: the entropy has a minus sign.")


@task(
    "03",
    given='''
    def codebook_usage(batches, num_embeddings):
        """Used codes, int64 (slots,), and perplexity, float (slots,), over all batches of codes,
        each int64 (B, h, w, slots)."""
        used, perplexities = [], []
        for codes in batches:
            counts = vqlib.quantizer.count_codes(codes, num_embeddings)  # (slots, K)
            used.append((counts > 0).sum(-1))
            perplexities.append(vqlib.quantizer.perplexity(counts))
        return torch.stack(used).amax(0), torch.stack(perplexities).mean(0)
    ''',
    solution='''
    def codebook_usage(batches, num_embeddings):
        """Used codes, int64 (slots,), and perplexity, float (slots,), over all batches of codes,
        each int64 (B, h, w, slots)."""
        counts = 0
        for codes in batches:
            counts = counts + vqlib.quantizer.count_codes(codes, num_embeddings)  # (slots, K)
        return (counts > 0).sum(-1), vqlib.quantizer.perplexity(counts)
    ''',
    hints=(
        "Which quantity may be added up over batches without an error: perplexities, or counts?",
        "Add the counts of all batches, and compute both numbers once, after the loop.",
    ),
)
def codebook_usage(answer):
    k, slots = 24, 2
    batches = []
    first = int(torch.randint(k - 17, ()))
    for size, offset in ((3, 0), (2, 2), (4, 8), (1, 11)):  # some codes are in two batches
        start = first + offset
        batches.append(torch.randint(start, start + 6, (size, 2, 2, slots)))
    every = [count_codes(codes, k) for codes in batches]
    total = torch.stack(every).sum(0)
    used, spread = answer(batches, k)
    _look_at_usage(used, spread, every)
    case = "four batches that use different codes"
    idea = "Add up the counts of all batches first."
    expect(used, (total > 0).sum(-1), f"the used codes of {case}", idea)
    expect(spread, perplexity(total), f"the perplexity of {case}", idea)


def _look_at_usage(used: Tensor, spread: Tensor, every: list[Tensor]) -> None:
    parts = torch.stack([perplexity(counts) for counts in every])
    sizes = torch.stack([counts.sum(-1) for counts in every]).float()
    weighted = (parts * sizes).sum(0) / sizes.sum(0)

    def equals(result: Tensor, other: Tensor) -> bool:
        return result.shape == other.shape and torch.allclose(result.float(), other.float())

    if any(equals(spread, mean) for mean in (parts.mean(0), weighted, parts.log().mean(0).exp())):
        raise Wrong(
            "This perplexity is an average over batches. Batches that use different codes have a "
            "larger perplexity together than each of them alone."
        )
    if equals(spread, parts[-1]):
        raise Wrong("This is the perplexity of the last batch alone.")
    if equals(used, (sum(every) > 0).sum(-1)):
        return
    if equals(used, sum((counts > 0).sum(-1) for counts in every)):
        raise Wrong("A code that is used in two batches is counted twice among the used codes.")
    if equals(used, torch.stack([(counts > 0).sum(-1) for counts in every]).amax(0)):
        raise Wrong("These are the used codes of one batch; the other batches use other codes.")


def reference_mutual_information(a: Tensor, b: Tensor) -> float:
    """Mutual information in bits of pairs of numbers, int64 (N,) and (N,), by counting."""
    table = torch.zeros(int(a.max()) + 1, int(b.max()) + 1)
    table.index_put_((a, b), torch.ones(len(a)), accumulate=True)
    joint = (table / len(a)).double()
    entropies = [torch.special.entr(p).sum() for p in (joint.sum(1), joint.sum(0), joint)]
    return float(entropies[0] + entropies[1] - entropies[2]) / math.log(2)


@task(
    "03",
    given='''
    def mutual_information(a, b):
        """Mutual information in bits of N pairs (a[i], b[i]), estimated from their frequencies.
        a, b: int64 (N,), not negative."""
        ...
    ''',
    solution='''
    def mutual_information(a, b):
        """Mutual information in bits of N pairs (a[i], b[i]), estimated from their frequencies.
        a, b: int64 (N,), not negative."""
        def entropy(values):
            p = values.bincount() / len(values)
            return torch.special.entr(p).sum() / math.log(2)

        pairs = a * (b.max() + 1) + b
        return float(entropy(a) + entropy(b) - entropy(pairs))
    ''',
    hints=(
        "Three entropies are enough: of a, of b, and of the pairs.",
        "Give each pair one number: a * (number of values of b) + b. Different pairs then have "
        "different numbers.",
        "`torch.bincount` counts; `torch.special.entr` gives -p ln p. Divide by ln 2 for bits.",
    ),
    hides=("vqlib.course.tasks.codebook.reference_mutual_information",),
)
def mutual_information(answer):
    a = torch.randint(9, (400,))
    a[0] = 8
    for b, case in (
        ((a // 2 + torch.randint(3, (400,))) % 5, "two variables that depend on each other"),
        (a % 3, "b = a % 3"),
        (torch.randint(4, (400,)), "two independent variables, 400 pairs"),
    ):
        expected = reference_mutual_information(a, b)
        result = answer(a, b)
        if result is None or result is Ellipsis:
            expect(result, expected, case, "")
        _look_at_information(float(result), expected, a, b)
        idea = "I = H(a) + H(b) - H(pairs), where a pair needs a number of its own."
        expect(float(result), expected, case, idea, rtol=1e-3)


def _look_at_information(result: float, expected: float, a: Tensor, b: Tensor) -> None:
    def entropy(values: Tensor) -> float:
        counts = torch.unique(values, return_counts=True)[1]
        return float(torch.special.entr(counts / counts.sum()).sum()) / math.log(2)

    def equals(other: float) -> bool:
        return abs(result - other) < 1e-3 + 1e-3 * abs(other) and abs(other - expected) > 1e-2

    if math.isnan(result):
        raise Wrong("NaN: some pairs never occur, and 0 log 0 counts as 0 in an entropy.")
    if equals(expected * math.log(2)):
        raise Wrong("This value is in nats. Divide by ln 2, or use log2 throughout, for bits.")
    if equals(-expected):
        raise Wrong("The sign is wrong: knowledge of the code cannot increase the uncertainty.")
    if equals(entropy(a) + entropy(b) - entropy(a + b)):
        raise Wrong("a + b is the same for different pairs: (1, 2) and (2, 1), for example.")
    if equals(entropy(a * (b.max() + 1) + b)):
        raise Wrong("This is the entropy of the pairs. What are H(a) and H(b) for?")


def reference_restart(codebook, sums, sizes, unused, vectors, limit=20):
    """The restart of `VectorQuantizer`, with the arguments of the task `restart_dead_codes`."""
    dead = unused >= limit
    new = vectors[torch.randint(len(vectors), (len(codebook),))]
    return (
        torch.where(dead[:, None], new, codebook),
        torch.where(dead[:, None], new, sums),
        torch.where(dead, 1.0, sizes),
        torch.where(dead, 0, unused),
    )


@task(
    "03",
    given='''
    def restart_dead_codes(codebook, sums, sizes, unused, vectors, limit=20):
        """Place each code with unused >= limit on a random vector of the batch.
        codebook, sums: (K, D); sizes, unused: (K,); vectors: (N, D), the batch.
        Returns new tensors: codebook, sums, sizes, unused."""
        ...
    ''',
    solution='''
    def restart_dead_codes(codebook, sums, sizes, unused, vectors, limit=20):
        """Place each code with unused >= limit on a random vector of the batch.
        codebook, sums: (K, D); sizes, unused: (K,); vectors: (N, D), the batch.
        Returns new tensors: codebook, sums, sizes, unused."""
        dead = unused >= limit
        new = vectors[torch.randint(len(vectors), (len(codebook),))]
        codebook = torch.where(dead[:, None], new, codebook)
        sums = torch.where(dead[:, None], new, sums)
        sizes = torch.where(dead, 1.0, sizes)
        unused = torch.where(dead, 0, unused)
        return codebook, sums, sizes, unused
    ''',
    hints=(
        "A boolean mask says which codes are dead; `torch.where` keeps all others.",
        "A restarted code is like a code that one vector was assigned to. What are its cluster "
        "size and its sum of vectors?",
        "`vectors[torch.randint(len(vectors), (K,))]` are K random vectors of the batch. And the "
        "counter of unused batches starts again.",
    ),
    hides=(
        "vqlib.quantizer.VectorQuantizer",
        "vqlib.course.tasks.codebook.reference_restart",
    ),
)
def restart_dead_codes(answer):
    k, d, n = 16, 3, 50
    sizes = torch.rand(k) + 0.5
    codebook = torch.randn(k, d)
    unused = torch.randint(0, 20, (k,))
    dead = torch.randperm(k)[:8]
    unused[dead] = torch.tensor([20, 20, 20, 21, 25, 30, 30, 40])
    vectors = 10 + torch.randn(n, d)
    state = codebook, codebook * sizes[:, None], sizes, unused
    new, again = (answer(*state, vectors, limit=20) for _ in range(2))
    if new is None or new is Ellipsis:
        expect(new, state, "", "")
    if len(new) != 4:
        raise Wrong(f"Expected four tensors, got {len(new)}.")
    is_dead = torch.zeros(k, dtype=torch.bool)
    is_dead[dead] = True
    _look_at_restarted(new, again, state, vectors, is_dead)


def _look_at_restarted(new, again, state, vectors, is_dead) -> None:
    names = "codebook", "sums", "sizes", "unused"
    for name, before, after in zip(names, state, new, strict=True):
        case = f"{name} of the codes that are in use"
        expect(after[~is_dead], before[~is_dead], case, "They stay as they are.")
    codebook, sums, sizes, unused = (tensor[is_dead] for tensor in new)
    if torch.equal(codebook[unused > 20], state[0][is_dead][unused > 20]) and (unused > 0).all():
        raise Wrong("No code was restarted, although some were unused for 20 batches and more.")
    if not (torch.cdist(codebook.double(), vectors.double()).amin(1) < 1e-4).all():
        raise Wrong(
            "A dead code was not placed on a vector of the batch. (A code is dead if it was unused "
            "for exactly `limit` batches, too.)"
        )
    if len(codebook.unique(dim=0)) == 1:
        raise Wrong("All dead codes got the same vector, so only one of them will be used.")
    if torch.equal(codebook, again[0][is_dead]):
        raise Wrong("The second call chose the same vectors again. Choose them at random.")
    if not (unused == 0).all():
        raise Wrong("The counter of a restarted code is not 0, so it restarts in the next batch.")
    if (sizes <= 0).any() or not torch.allclose(sums / sizes[:, None], codebook, rtol=1e-3):
        raise Wrong(
            "In the next EMA step a codebook vector becomes sums / sizes. For a restarted code "
            "this is not the new vector, so the code jumps away from where it was placed."
        )


@task(
    "03",
    given='''
    def start_from_k_means(vectors, num_embeddings):
        """Initial codebook (K, D), sums (K, D) and cluster sizes (K,) of the EMA, by k-means on
        vectors (N, D)."""
        codebook = vqlib.quantizer.k_means(vectors[None], num_embeddings)[0]
        codes = vqlib.quantizer.nearest_codes(vectors[None], codebook[None])[0]
        sizes = codes.bincount(minlength=num_embeddings).float()
        sums = codebook.clone()
        return codebook, sums, sizes
    ''',
    solution='''
    def start_from_k_means(vectors, num_embeddings):
        """Initial codebook (K, D), sums (K, D) and cluster sizes (K,) of the EMA, by k-means on
        vectors (N, D)."""
        codebook = vqlib.quantizer.k_means(vectors[None], num_embeddings)[0]
        codes = vqlib.quantizer.nearest_codes(vectors[None], codebook[None])[0]
        sizes = codes.bincount(minlength=num_embeddings).float()
        sums = codebook * sizes[:, None]
        return codebook, sums, sizes
    ''',
    hints=(
        "What does `ema_step` compute from sums and sizes?",
        "A codebook vector is the mean of its cluster: sum of the vectors / number of vectors. "
        "Print sums / sizes[:, None] for one code, beside its codebook vector.",
        "The sum of a cluster is its centroid times its size.",
    ),
)
def start_from_k_means(answer):
    k, d = 6, 4
    centers = 30 * torch.randn(k, d)
    vectors = (centers + torch.randn(40, k, d)).flatten(0, 1)
    codebook, sums, sizes = answer(vectors, k)
    for name, value, shape in (
        ("codebook", codebook, (k, d)),
        ("sums", sums, (k, d)),
        ("sizes", sizes, (k,)),
    ):
        if value.shape != shape:
            raise Wrong(f"{name} should have the shape {shape}, not {tuple(value.shape)}.")
    if (torch.cdist(vectors, codebook).amin(1) > 120).any() or codebook.norm(dim=1).max() < 1:
        raise Wrong("The codebook is far from the vectors: keep that of k-means.")
    if (sizes <= 0).all():
        raise Wrong("All cluster sizes are 0: the first EMA step divides by almost nothing.")
    mean = sums / sizes[:, None]
    filled = sizes > 0
    if torch.allclose(mean[filled], codebook[filled], rtol=0.02, atol=2.0):
        return
    i = int(filled.nonzero()[0])
    detail = (
        f"Code {i} has {sizes[i]:.0f} vectors and the codebook vector {_text(codebook[i])}, but "
        f"sums / sizes is {_text(mean[i])}."
    )
    if torch.allclose(sums, codebook):
        raise Wrong(f"{detail} The first EMA step moves the codebook vector there, near 0.")
    raise Wrong(f"{detail} In the EMA, sums / sizes is the codebook vector.")


def _text(vector: Tensor) -> str:
    return "(" + ", ".join(f"{value:.1f}" for value in vector.tolist()) + ")"


@task(
    "03",
    given='''
    def to_vectors(z, embedding_dim):
        """Feature maps (B, C, H, W) to vectors (B * H * W * slots, embedding_dim), in the order
        of codes (B, H, W, slots)."""
        return z.reshape(-1, embedding_dim)
    ''',
    solution='''
    def to_vectors(z, embedding_dim):
        """Feature maps (B, C, H, W) to vectors (B * H * W * slots, embedding_dim), in the order
        of codes (B, H, W, slots)."""
        return z.permute(0, 2, 3, 1).reshape(-1, embedding_dim)
    ''',
    hints=(
        "`reshape` reads the numbers in the order of the axes, the last axis fastest. Which axis "
        "is last in z, and which must be last so that 64 consecutive numbers are 64 channels?",
        "Move the channels to the end first: (B, C, H, W) -> (B, H, W, C).",
    ),
    hides=("vqlib.quantizer.VectorQuantizer",),
)
def to_vectors(answer):
    for batch, slots, d, height, width in ((1, 2, 3, 2, 4), (3, 4, 5, 3, 2)):
        z = torch.arange(batch * slots * d * height * width).view(batch, -1, height, width).float()
        expected = z.permute(0, 2, 3, 1).reshape(-1, d)
        result = answer(z, d)
        case = f"z of shape {tuple(z.shape)} and embedding_dim {d}"
        if isinstance(result, Tensor) and result.shape == expected.shape:
            _look_at_vectors(result, z, d, case)
        expect(result, expected, case, "One vector: consecutive channels of one position.")


def _look_at_vectors(result: Tensor, z: Tensor, d: int, case: str) -> None:
    split = z.unflatten(1, (-1, d))  # (B, slots, d, H, W)
    if torch.equal(result, z.reshape(-1, d)):
        raise Wrong(f"For {case}: a vector holds several positions of one channel.")
    mistakes = {
        "rows and columns of the grid are exchanged.": z.permute(0, 3, 2, 1),
        "a vector holds every slots-th channel instead of consecutive ones.": z.unflatten(
            1, (d, -1)
        ).permute(0, 3, 4, 2, 1),
        "the slots of one position must be neighbors: the order is (B, H, W, slots).": (
            split.permute(0, 1, 3, 4, 2)
        ),
    }
    for message, order in mistakes.items():
        if torch.equal(result, order.reshape(-1, d)):
            raise Wrong(f"For {case}: {message}")


add_quiz(
    "03.1",
    "Four codes occur 37, 1, 1 and 1 times. What is the perplexity?",
    {
        "4, because four codes are used": "No. It would be 4 if all four were equally frequent.",
        "about 2.5": "No. The three rare codes have 2.5 % each: the entropy is only 0.35 nats.",
        "about 1.4": "Right. The entropy is 0.35 nats, and exp(0.35) is 1.42.",
        "below 1": "No. An entropy is never negative, so its exponential is at least 1.",
    },
)


add_quiz(
    "03.2",
    "In the deep decoder, what happens far from a position whose four codes are replaced?",
    {
        "nothing changes": "No. Attention and group normalization connect all positions.",
        "pixels change a little": "Right. The next output shows how little.",
        "pixels change as much as nearby": "No. Nearby pixels change much more.",
    },
)


add_quiz(
    "03.3",
    "Almost no code shifts with the image. Why?",
    {
        "each code describes another position": "No. Then codes would still shift with it.",
        "each code describes all positions at once": "Right. A shift changes all of them.",
        "the encoder does not shift its features": "No. The total stride of its convolutions is "
        "32, so its features shift by one column.",
    },
)
