"""Tasks of notebook 10: attention, its cache, masked training, parallel decoding, the bound."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..exercises import NotAttempted, Wrong, add_quiz, expect, solved, task


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def _is_mistake(actual: object, mistake: Tensor, right: Tensor) -> bool:
    """Whether an answer has the values of a mistake, and these are not also the right ones."""
    return isinstance(actual, Tensor) and _same(actual, mistake) and not _same(mistake, right)


def _attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return solved("causal_attention")(query, key, value)


@task(
    "10",
    given='''
    def causal_attention(query, key, value):
        """Causal scaled dot-product attention of float tensors (B, heads, T, d).

        Returns the output (B, heads, T, d) and the weights (B, heads, T, T). Row i of the weights
        belongs to token i: what it reads from each token j.
        """
        ...
    ''',
    solution='''
    def causal_attention(query, key, value):
        """Causal scaled dot-product attention of float tensors (B, heads, T, d).

        Returns the output (B, heads, T, d) and the weights (B, heads, T, T). Row i of the weights
        belongs to token i: what it reads from each token j.
        """
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return weights @ value, weights
    ''',
    hints=(
        "Four steps: the products of all queries with all keys, the scaling, the mask, the softmax "
        "over the keys. The weights are then applied to the values.",
        "key.transpose(-2, -1) is (B, heads, d, T), so query @ key.transpose(-2, -1) has entry "
        "(i, j) for query i and key j.",
        "A weight of 0 needs a score of minus infinity before the softmax: masked_fill with "
        "-torch.inf where j > i. torch.ones(T, T, dtype=torch.bool).triu(1) is True there.",
    ),
)
def causal_attention(answer):
    shape = (2, 3, int(torch.randint(4, 7, ())), int(torch.randint(5, 9, ())))
    query, key, value = torch.randn(3, *shape)
    result = answer(query, key, value)
    if result is None or result is Ellipsis:
        raise NotAttempted
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Wrong("Two results are expected, the output and the weights.")
    scores = query @ key.transpose(-2, -1)
    scaled = scores / math.sqrt(shape[-1])
    right = _causal_softmax(scaled)
    lower = torch.ones(shape[2], shape[2]).tril() > 0
    mistakes = {
        "These are the weights without the scaling. A product of d random terms has a standard "
        "deviation of about the square root of d.": _causal_softmax(scores),
        "The scores are divided by d. Their standard deviation grows with the square root of d.": (
            _causal_softmax(scores / shape[-1])
        ),
        "These are the weights without a mask: each token reads later ones, too.": (
            scaled.softmax(-1)
        ),
        "Token i reads token i + 1: the mask begins one diagonal too late.": _causal_softmax(
            scaled, 1
        ),
        "Token i does not read itself, and the first token reads nothing (NaN). Its input is the "
        "code before the one that it predicts, so it may.": _causal_softmax(scaled, -1),
        "Token i reads only itself and later tokens: the mask is transposed.": (
            scaled.masked_fill(~lower.T, -torch.inf).softmax(-1)
        ),
        "The mask was applied after the softmax, so the rows do not add up to 1. Mask the scores, "
        "with minus infinity.": scaled.softmax(-1) * lower,
        "A score of 0 is not a weight of 0, because exp(0) = 1. Which score gives a weight of 0?": (
            scaled.masked_fill(~lower, 0).softmax(-1)
        ),
        "The softmax goes over the queries. The weights of one query have to add up to 1.": (
            scaled.masked_fill(~lower, -torch.inf).softmax(-2)
        ),
    }
    for mistake, weights in mistakes.items():
        if _is_mistake(result[1], weights, right):
            raise Wrong(mistake)
    case = f"random queries, keys and values of shape {shape}"
    expect(result[1], right, f"the weights of {case}", "Scores, scaling, mask, softmax over keys.")
    expect(result[0], right @ value, f"the output for {case}", "The weights times the values.")


def _causal_softmax(scores: Tensor, diagonal: int = 0) -> Tensor:
    visible = torch.ones(scores.shape[-2:]).tril(diagonal) > 0
    return scores.masked_fill(~visible, -torch.inf).softmax(-1)


@task(
    "10",
    given='''
    def self_attention(x, in_weight, out_weight, heads, attention):
        """Causal self-attention with several heads, float (B, T, C) -> (B, T, C).

        in_weight: (3 C, C), for queries, keys and values. out_weight: (C, C).
        attention: maps query, key and value, (B, heads, T, C / heads), to output and weights.
        """
        B, T, C = x.shape
        parts = (x @ in_weight.T).chunk(3, dim=-1)  # three (B, T, C)
        query, key, value = (part.reshape(B, heads, T, C // heads) for part in parts)
        output, _ = attention(query, key, value)
        return output.transpose(1, 2).reshape(B, T, C) @ out_weight.T
    ''',
    solution='''
    def self_attention(x, in_weight, out_weight, heads, attention):
        """Causal self-attention with several heads, float (B, T, C) -> (B, T, C).

        in_weight: (3 C, C), for queries, keys and values. out_weight: (C, C).
        attention: maps query, key and value, (B, heads, T, C / heads), to output and weights.
        """
        B, T, C = x.shape
        parts = (x @ in_weight.T).chunk(3, dim=-1)  # three (B, T, C)
        query, key, value = (
            part.reshape(B, T, heads, C // heads).transpose(1, 2) for part in parts
        )
        output, _ = attention(query, key, value)
        return output.transpose(1, 2).reshape(B, T, C) @ out_weight.T
    ''',
    hints=(
        "The mask is right. Does row t of `query[0, 0]` contain features of token t only? Try it "
        "with x = torch.arange(T)[None, :, None] * torch.ones(1, T, C) and one reshape.",
        "reshape keeps the order of the numbers in memory. In (B, T, C) the C features of one "
        "token are neighbors in memory, so only the last axis may be split.",
        "Split (B, T, C) into (B, T, heads, C // heads), then exchange the axes 1 and 2. The last "
        "line does the opposite.",
    ),
)
def self_attention(answer):
    heads, tokens, d = 3, int(torch.randint(5, 8, ())), 4
    x, in_weight = torch.randn(2, tokens, heads * d), torch.randn(3 * heads * d, heads * d)
    out_weight = torch.randn(heads * d, heads * d)
    result = answer(x, in_weight, out_weight, heads, _attention)

    def with_errors(wrong_split: bool, wrong_merge: bool) -> Tensor:
        parts = (x @ in_weight.T).chunk(3, dim=-1)
        size = (2, heads, tokens, d) if wrong_split else (2, tokens, heads, d)
        parts = [part.reshape(size) for part in parts]
        output = _attention(*(p if wrong_split else p.transpose(1, 2) for p in parts))[0]
        return (output if wrong_merge else output.transpose(1, 2)).reshape(x.shape) @ out_weight.T

    right = with_errors(False, False)
    for mistake, values in {
        "The heads are split correctly now, but not joined correctly. The last line was right.": (
            with_errors(False, True)
        ),
        "The heads are not split correctly. After the split, head 0 of token t should have the "
        "first C / heads features of token t.": with_errors(True, False),
        "This is causal, but a head contains only some of the tokens, so the last token can't read "
        "the first one. The last line was right; the split is not.": with_errors(True, True),
        "The result lacks the last matrix, out_weight.": _attention(
            *(
                p.reshape(2, tokens, heads, d).transpose(1, 2)
                for p in (x @ in_weight.T).chunk(3, dim=-1)
            )
        )[0]
        .transpose(1, 2)
        .reshape(x.shape),
    }.items():
        if _is_mistake(result, values, right):
            raise Wrong(mistake)
    idea = "Head h of token t has the features h * C / heads to (h + 1) * C / heads of token t."
    expect(result, right, f"random features of shape {tuple(x.shape)}, {heads} heads", idea)


@task(
    "10",
    given='''
    def attend_with_cache(query, key, value, keys, values):
        """Causal attention of the newest token to itself and to all earlier ones.

        query, key, value: of the newest token, float (B, heads, 1, d).
        keys, values: of the t earlier tokens, float (B, heads, t, d); t may be 0.
        Returns the output (B, heads, 1, d), and keys and values of t + 1 tokens.
        """
        ...
    ''',
    solution='''
    def attend_with_cache(query, key, value, keys, values):
        """Causal attention of the newest token to itself and to all earlier ones.

        query, key, value: of the newest token, float (B, heads, 1, d).
        keys, values: of the t earlier tokens, float (B, heads, t, d); t may be 0.
        Returns the output (B, heads, 1, d), and keys and values of t + 1 tokens.
        """
        keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        scores = query @ keys.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return scores.softmax(-1) @ values, keys, values
    ''',
    hints=(
        "First append the newest key and value to the cache (torch.cat along the axis of the "
        "tokens), because a token also reads itself.",
        "All keys in the cache are earlier ones, so no mask is needed. The scores have the shape "
        "(B, heads, 1, t + 1).",
        "Return softmax of the scaled scores times the values, then the keys, then the values.",
    ),
)
def attend_with_cache(answer):
    tokens, d = int(torch.randint(4, 7, ())), int(torch.randint(5, 9, ()))
    query, key, value = torch.randn(3, 2, 3, tokens, d)
    keys = values = torch.zeros(2, 3, 0, d)
    outputs = []
    for t in range(tokens):
        inputs = (x[:, :, t : t + 1] for x in (query, key, value))
        result = answer(*inputs, keys, values)
        if result is None or result is Ellipsis:
            raise NotAttempted
        if not isinstance(result, tuple | list) or len(result) != 3:
            raise Wrong("Three results are expected: output, keys, values.")
        output, keys, values = result
        outputs.append(output)
        for name, found, expected in (("keys", keys, key), ("values", values, value)):
            idea = "The cache keeps all tokens in their order, the newest one last."
            expect(found, expected[:, :, : t + 1], f"token {t}, the new {name}", idea)
    right = _attention(query, key, value)[0]
    scores, earlier = query[:, :, -1:] @ key.transpose(-2, -1), value[:, :, :-1]
    for mistake, wrong in {
        "The newest token reads the earlier ones but not itself. Append its key and value to the "
        "cache first.": (scores[..., :-1] / math.sqrt(d)).softmax(-1) @ earlier,
        "The newest token reads only the first one. With is_causal=True and a single query, "
        "PyTorch takes this query for token 0 and hides all other tokens. A cache contains no "
        "later tokens, so it needs no mask.": value[:, :, :1],
        "The scores are not divided by the square root of d.": scores.softmax(-1) @ value,
        "The newest token reads only itself.": value[:, :, -1:],
    }.items():
        if _is_mistake(outputs[-1], wrong, right[:, :, -1:]):
            raise Wrong(mistake)
    for t, output in enumerate(outputs):
        idea = "It should equal the full pass at this token."
        expect(output, right[:, :, t : t + 1], f"token {t} of {tokens}", idea)


@task(
    "10",
    given='''
    def masked_loss(model, codes):
        """Mean loss, in bits, of predicting masked codes from visible ones.

        codes: int64 (B, h, w, slots). model(codes, masked) gives logits (B, h, w, slots, K); it
        does not see the codes where masked, bool (B, h, w, slots), is True.
        """
        masked = torch.rand(codes.shape) < 0.15  # as in BERT
        logits = model(codes, masked)
        nats = F.cross_entropy(logits.flatten(0, 3), codes.flatten(), reduction="none")
        return nats.mean() / math.log(2)
    ''',
    solution='''
    def masked_loss(model, codes):
        """Mean loss, in bits, of predicting masked codes from visible ones.

        codes: int64 (B, h, w, slots). model(codes, masked) gives logits (B, h, w, slots, K); it
        does not see the codes where masked, bool (B, h, w, slots), is True.
        """
        share = torch.rand(len(codes), 1, 1, 1)
        masked = torch.rand(codes.shape) < share
        logits = model(codes, masked)
        nats = F.cross_entropy(logits.flatten(0, 3), codes.flatten(), reduction="none")
        return nats[masked.flatten()].mean() / math.log(2)
    ''',
    hints=(
        "Two errors. The first one: for which codes can the model simply copy its input?",
        "The second one: in the first pass of the sampler, which share of the codes is masked? How "
        "often does a model with this loss see that in training?",
        "Average over nats[masked.flatten()] only. Choose a share of masked codes for each grid of "
        "the batch, uniform in [0, 1]: torch.rand(len(codes), 1, 1, 1).",
    ),
    hides=(
        "vqlib.beyond.masked_transformer.random_masks",
        "vqlib.beyond.masked_transformer.MaskedTransformer.masked_nats",
        "vqlib.beyond.masked_transformer.MaskedTransformer.training_loss",
    ),
)
def masked_loss(answer):
    shape, k, masks = (8, 2, 4, 4), 5, []
    for call in range(150):
        codes, logits = torch.randint(k, shape), 2 * torch.randn(*shape, k)
        seen: list[Tensor] = []
        loss = answer(_recorder(logits, seen), codes)
        if loss is None or loss is Ellipsis:
            raise NotAttempted
        if len(seen) != 1:
            raise Wrong(f"The model should be run once, but was run {len(seen)} times.")
        masked = seen[0]
        if not isinstance(masked, Tensor) or masked.dtype != torch.bool or masked.shape != shape:
            raise Wrong(f"`masked` should be a bool tensor of shape {shape}.")
        masks.append(masked)
        if call:
            continue  # the loss is compared once; the other calls are for the masks
        nats = F.cross_entropy(logits.flatten(0, 3), codes.flatten(), reduction="none").view(shape)
        bits, number = nats / math.log(2), masked.flatten(1).sum(1)
        of_grids = (bits * masked).flatten(1).sum(1) / number
        if isinstance(loss, Tensor) and _same(loss, of_grids.mean()):
            continue  # equal weights of all grids are right, too
        for mistake, wrong in {
            "The loss is the mean over all codes. Visible codes are inputs of the model, so it "
            "learns to copy them.": bits.mean(),
            "The loss is the mean over the visible codes: the mask is inverted.": (
                bits[~masked].mean()
            ),
            "The sum over the masked codes is divided by the number of all codes. The fewer codes "
            "are masked, the smaller this loss is.": (bits * masked).mean(),
            "The loss is in nats. One nat is 1 / log(2) bits.": nats[masked].mean(),
        }.items():
            if _is_mistake(loss, wrong, bits[masked].mean()):
                raise Wrong(mistake)
        expect(loss, bits[masked].mean(), "random logits", "The mean over the masked codes.")
    every = torch.cat(masks)
    share = every.flatten(1).float().mean(1)
    if share.std() < 0.13:
        raise Wrong(
            f"In nearly every grid, about {float(share.mean()):.0%} of the codes are masked. The "
            "sampler starts with all codes masked and ends with few: the model has to learn all "
            "these cases."
        )
    if share.min() > 0.1 or share.max() < 0.9:
        raise Wrong(
            f"The share of masked codes lies between {float(share.min()):.0%} and "
            f"{float(share.max()):.0%} in 1,200 grids. It should be uniform between 0 and 1."
        )
    if abs(float(share.mean()) - 0.5) > 0.12:  # 150 batches, each with one share: SE 0.024
        raise Wrong(
            f"On average {float(share.mean()):.0%} of the codes are masked. With a share that is "
            "uniform between 0 and 1, it should be 50 %."
        )
    if (every == every[..., :1]).all():
        raise Wrong("The slots of a position are always masked together. Mask single codes.")
    frequency = every.float().mean(0)
    if float(frequency.max() - frequency.min()) > 0.15:
        raise Wrong("Some codes are masked more often than others. The mask should be random.")


def _recorder(logits: Tensor, seen: list[Tensor]) -> Callable[..., Tensor]:
    def model(codes: Tensor, masked: Tensor) -> Tensor:
        seen.append(masked)
        return logits

    return model


def masked_loss_as_found(model: Callable[..., Tensor], codes: Tensor) -> Tensor:
    """The broken function of the task, for the figure that shows its symptom."""
    masked = torch.rand(codes.shape) < 0.15  # as in BERT
    logits = model(codes, masked)
    nats = F.cross_entropy(logits.flatten(0, 3), codes.flatten(), reduction="none")
    return nats.mean() / math.log(2)


@task(
    "10",
    given='''
    def still_masked(confidence, masked, remaining):
        """Which codes stay masked after a pass: the `remaining` least confident masked ones.

        confidence: float (n, T), of all codes. masked: bool (n, T), True at `remaining` codes or
        more in each row.
        Returns bool (n, T).
        """
        least_confident = confidence.argsort(1)[:, :remaining]
        result = torch.zeros_like(masked)
        result[:, least_confident] = True
        return result
    ''',
    solution='''
    def still_masked(confidence, masked, remaining):
        """Which codes stay masked after a pass: the `remaining` least confident masked ones.

        confidence: float (n, T), of all codes. masked: bool (n, T), True at `remaining` codes or
        more in each row.
        Returns bool (n, T).
        """
        confidence = confidence.masked_fill(~masked, torch.inf)
        least_confident = confidence.argsort(1)[:, :remaining]
        return torch.zeros_like(masked).scatter(1, least_confident, True)
    ''',
    hints=(
        "Two errors. The first: a code that is visible takes part in the comparison. Which "
        "confidence must it have, so that it is never among the least confident?",
        "The second: result[:, index] = True with an index of shape (n, r) changes the columns of "
        "all n rows in every row. With n = 1 this is not noticed.",
        "confidence.masked_fill(~masked, torch.inf), and torch.zeros_like(masked).scatter(1, "
        "least_confident, True), which writes to row i only the columns in row i of the index.",
    ),
)
def still_masked(answer):
    for n, tokens, remaining in ((1, 12, 4), (4, 12, 4), (3, 9, 0), (3, 9, 5)):
        confidence = torch.rand(n, tokens).log()
        number = remaining + 2  # masked codes
        masked = torch.rand(n, tokens).argsort(1).argsort(1) < number
        # A visible code with the lowest confidence of all, as often happens.
        confidence[torch.arange(n), (~masked).float().argmax(1)] = -20.0
        result = answer(confidence, masked, remaining)
        if result is None or result is Ellipsis:
            raise NotAttempted
        case = f"{n} rows of {tokens} codes, {number} of them masked, remaining = {remaining}"
        if not isinstance(result, Tensor) or result.shape != masked.shape:
            raise Wrong(f"For {case}: a bool tensor of shape {(n, tokens)} was expected.")
        if result.dtype != torch.bool:
            raise Wrong(f"For {case}: the dtype should be torch.bool, not {result.dtype}.")
        if (result & ~masked).any():
            raise Wrong(
                f"For {case}: a code that was visible is masked again. Its value would be replaced "
                "in the next pass, also if it was given by the user."
            )
        found = result.sum(1)
        if (found > remaining).any():
            raise Wrong(
                f"For {case}: {found.tolist()} codes are masked. Do the indices of one row change "
                "other rows?"
            )
        order = confidence.masked_fill(~masked, torch.inf).argsort(1)
        right = torch.zeros_like(masked).scatter(1, order[:, :remaining], True)
        most = confidence.masked_fill(~masked, -torch.inf).argsort(1, descending=True)
        if remaining and torch.equal(
            result, torch.zeros_like(masked).scatter(1, most[:, :remaining], True)
        ):
            raise Wrong(
                f"For {case}: the most confident codes stay masked. They should become visible."
            )
        expect(result, right, case, "The least confident of the masked codes stay masked.")


@task(
    "10",
    given='''
    def sample_in_passes(model, n, shape, passes):
        """n grids of codes, int64 (n, *shape), sampled in parallel passes.

        model(codes, masked) gives logits (n, *shape, K); it sees the codes only where masked,
        bool (n, *shape), is False. After pass s = 1, 2, ... floor(T cos(pi s / (2 passes))) of
        the T codes of a grid stay masked. The function still_masked may be used.
        """
        codes = torch.zeros(n, *shape, dtype=torch.long)
        ...
        return codes
    ''',
    solution='''
    def sample_in_passes(model, n, shape, passes):
        """n grids of codes, int64 (n, *shape), sampled in parallel passes.

        model(codes, masked) gives logits (n, *shape, K); it sees the codes only where masked,
        bool (n, *shape), is False. After pass s = 1, 2, ... floor(T cos(pi s / (2 passes))) of
        the T codes of a grid stay masked. The function still_masked may be used.
        """
        codes = torch.zeros(n, *shape, dtype=torch.long)
        masked = torch.ones(n, *shape, dtype=torch.bool)
        for step in range(1, passes + 1):
            p = model(codes, masked).softmax(-1)
            sampled = torch.multinomial(p.flatten(0, -2), 1).view(codes.shape)
            codes = torch.where(masked, sampled, codes)
            confidence = p.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
            remaining = math.floor(codes[0].numel() * math.cos(math.pi / 2 * step / passes))
            flat = still_masked(confidence.flatten(1), masked.flatten(1), remaining)
            masked = flat.view(codes.shape)
        return codes
    ''',
    hints=(
        "A loop over the passes. Each pass: logits, sample all codes, write them where `masked` is "
        "True, the confidence of each code, how many remain masked, the new `masked`.",
        "torch.multinomial needs two dimensions: p.flatten(0, -2), then .view(codes.shape). Write "
        "with torch.where(masked, sampled, codes), so that visible codes stay.",
        "The confidence is the probability of the code that was sampled: p.gather(-1, "
        "codes.unsqueeze(-1)).squeeze(-1). still_masked works on (n, T): flatten(1), then view.",
    ),
    hides=("vqlib.beyond.masked_transformer.MaskedTransformer.sample",),
)
def sample_in_passes(answer):
    shape, k, passes = (2, 3), 8, 4
    # Position i has choices[i] codes of equal probability, so that the confidence of a sample is
    # known: 1 / choices[i].
    choices = 1 + torch.randperm(6)
    logits = torch.where(torch.arange(k) < choices[:, None], 0.0, -60.0).view(*shape, k)
    calls: list[tuple[Tensor, Tensor]] = []

    def model(codes: Tensor, masked: Tensor) -> Tensor:
        calls.append((codes.clone(), masked.clone()))
        return logits.expand(*codes.shape, k)

    codes = answer(model, 50, shape, passes)
    if codes is None or codes is Ellipsis or not calls:
        raise NotAttempted
    if not isinstance(codes, Tensor) or codes.shape != (50, *shape) or codes.dtype != torch.long:
        raise Wrong(f"The result should be an int64 tensor of shape {(50, *shape)}.")
    if len(calls) != passes:
        raise Wrong(f"The model should be run {passes} times, but was run {len(calls)} times.")
    numbers = [masked[0].sum().item() for _, masked in calls]
    right = [6, *(math.floor(6 * math.cos(math.pi / 2 * s / passes)) for s in range(1, passes))]
    if numbers == [6] * passes:
        raise Wrong("In every pass all codes are masked. `masked` has to be replaced after a pass.")
    if numbers == [6, 6, 5, 4]:
        raise Wrong(
            "After the first pass all codes are still masked: the steps are counted from 0. After "
            f"pass s of {passes}, the fraction cos(pi/2 * s/{passes}) stays masked, s = 1, 2, ..."
        )
    idea = "After pass s of S, floor(T * cos(pi/2 * s/S)) of T codes stay masked."
    expect(numbers, right, "6 codes and 4 passes, the number of masked codes in each pass", idea)
    rank = choices.argsort().argsort().view(shape)
    for (seen, masked), number in zip(calls, right, strict=True):
        if (seen != codes)[~masked].any():
            raise Wrong("A visible code is changed by a later pass. Write where `masked` is True.")
        if not (masked == (rank >= 6 - number)).all():
            raise Wrong(
                "The codes that become visible are not the most confident ones. The confidence of "
                "a code is the probability with which it was sampled."
            )
    logits = 2 * torch.randn(*shape, k)
    codes = answer(model, 4000, shape, 1)
    p = logits.softmax(-1)
    if (codes == codes[0]).all():
        raise Wrong("All grids are equal: taking the most probable code is not sampling.")
    frequency = F.one_hot(codes, k).float().mean(0)
    error = (p * (1 - p) / 4000).sqrt() + 1e-3
    if ((frequency - p).abs() > 6 * error).any():
        raise Wrong(
            "In a single pass, the frequencies of the codes differ from the softmax of the logits. "
            "Sample each code from its own distribution."
        )


@task(
    "10",
    given='''
    def bits_bound(nats, masked):
        """Upper bound on the bits per code of N grids of T codes, from one random mask for each.

        masked: bool (N, T). The number of masked codes of each grid is uniform in 1..T.
        nats: float (N, T), negative log-likelihood of each masked code, 0 at visible codes.
        Returns a float tensor, ().
        """
        return nats.sum() / masked.sum() / math.log(2)
    ''',
    solution='''
    def bits_bound(nats, masked):
        """Upper bound on the bits per code of N grids of T codes, from one random mask for each.

        masked: bool (N, T). The number of masked codes of each grid is uniform in 1..T.
        nats: float (N, T), negative log-likelihood of each masked code, 0 at visible codes.
        Returns a float tensor, ().
        """
        return (nats.sum(1) / masked.sum(1)).mean() / math.log(2)
    ''',
    hints=(
        "Which grids determine the given value? Compare a grid with 1 masked code and a grid with "
        "T masked codes: how much does each contribute?",
        "In the formula all m = 1..T have the same weight, and for each m there is a mean over m "
        "codes. What is the weight of a grid with m masked codes in your value?",
        "First the mean over the masked codes of each grid, nats.sum(1) / masked.sum(1), then the "
        "mean over the grids.",
    ),
    hides=("vqlib.beyond.masked_transformer.MaskedTransformer.bits_bound",),
)
def bits_bound(answer):
    n, tokens = 300, 12
    rank = torch.rand(n, tokens).argsort(1).argsort(1)
    masked = rank < torch.randint(1, tokens + 1, (n, 1))
    number = masked.sum(1)
    nats = (torch.rand(n, tokens) + number[:, None] / 4) * masked
    result = answer(nats, masked)
    if result is None or result is Ellipsis:
        raise NotAttempted
    means = nats.sum(1) / number
    right = means.mean() / math.log(2)
    for mistake, wrong in {
        "This is the mean over all masked codes. A grid with 12 masked codes then has 12 times the "
        "weight of a grid with one, but all numbers of masked codes should have equal weight.": (
            nats.sum() / masked.sum() / math.log(2)
        ),
        "This is in nats. One nat is 1 / log(2) bits.": means.mean(),
        "The nats of a grid are divided by the number of all its codes. In a random order, a code "
        "is coded while m codes are masked, and it is one of these m.": (nats.mean() / math.log(2)),
        "This is the sum over the masked codes of a grid, not their mean.": (
            nats.sum(1).mean() / math.log(2)
        ),
        "One value is expected, the mean over the grids.": means / math.log(2),
    }.items():
        if _is_mistake(result, wrong, right):
            raise Wrong(mistake)
    expect(result, right, f"{n} random grids of {tokens} codes", "Equal weight for every m.")


add_quiz(
    "10.1",
    "The input of token i is code i - 1, and its output predicts code i. May token i attend to "
    "itself?",
    {
        "No: it would see the code that it has to predict.": "Not quite. The input of token i is "
        "code i - 1, which is known when code i is predicted. The shift by one token already hides "
        "code i.",
        "Yes: its input is a code that is already known.": "Right. The shift hides code i, so the "
        "mask has to exclude later tokens only. Without attention to itself, token 0 would have "
        "nothing to attend to.",
        "Only in the layers after the first one, like mask B of PixelCNN.": "PixelCNN needs mask A "
        "in its first layer because its input is not shifted. Here the shift does this, and all "
        "layers have the same mask.",
    },
)
add_quiz(
    "10.2",
    "The masked prior samples all 256 codes in a single pass. Suppose that its predictions are "
    "perfect. What do the images look like?",
    {
        "Like lesions, because the predictions are perfect.": "No. With everything masked, a "
        "perfect prediction is the frequency of each code at its position. These are the "
        "per-position marginals of notebook 04, sampled independently.",
        "Like samples from the per-position marginals.": "Right. No code knows which values the "
        "others have received, so the codes do not fit together. More training does not help.",
        "Like an average of all lesions.": "No. The codes are sampled, not averaged. But they are "
        "sampled independently of each other.",
    },
)
add_quiz(
    "10.3",
    "A masked prior has an upper bound of 7.5 bits per code, a causal prior needs exactly 7.4 on "
    "the same codes. Which one assigns the higher probability to these codes?",
    {
        "The causal one.": "That would follow if 7.5 were exact. The true value of the masked "
        "prior may be anywhere below 7.5, also below 7.4.",
        "The masked one.": "It is possible, because its true value may lie below 7.4, but it does "
        "not follow.",
        "It can't be decided from these numbers.": "Right. An upper bound that is larger than the "
        "exact value of the other says nothing. If the bound were below 7.4, the masked prior "
        "would be better for certain.",
    },
)
