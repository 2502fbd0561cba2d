"""Wrong answers to the tasks of notebook 10: task -> (source, words of the reply)."""

ATTENTION = (
    "def causal_attention(query, key, value):\n"
    "    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])\n"
    "    mask = torch.ones_like(scores, dtype=torch.bool).triu(1)\n"
    "    weights = scores.masked_fill(mask, -torch.inf).softmax(-1)\n"
    "    return weights @ value, weights"
)
SELF_ATTENTION = (
    "def self_attention(x, in_weight, out_weight, heads, attention):\n"
    "    B, T, C = x.shape\n"
    "    parts = (x @ in_weight.T).chunk(3, dim=-1)\n"
    "    q, k, v = (p.reshape(B, T, heads, -1).transpose(1, 2) for p in parts)\n"
    "    output, _ = attention(q, k, v)\n"
    "    return output.transpose(1, 2).reshape(B, T, C) @ out_weight.T"
)
CACHE = (
    "def attend_with_cache(query, key, value, keys, values):\n"
    "    keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)\n"
    "    output = F.scaled_dot_product_attention(query, keys, values)\n"
    "    return output, keys, values"
)
LOSS = (
    "def masked_loss(model, codes):\n"
    "    masked = torch.rand(codes.shape) < torch.rand(len(codes), 1, 1, 1)\n"
    "    logits = model(codes, masked)\n"
    "    nats = F.cross_entropy(logits.flatten(0, 3), codes.flatten(), reduction='none')\n"
    "    return nats[masked.flatten()].mean() / math.log(2)"
)
STILL = (
    "def still_masked(confidence, masked, remaining):\n"
    "    confidence = confidence.masked_fill(~masked, torch.inf)\n"
    "    index = confidence.argsort(1)[:, :remaining]\n"
    "    return torch.zeros_like(masked).scatter(1, index, True)"
)
PASSES = (
    "def sample_in_passes(model, n, shape, passes):\n"
    "    codes = torch.zeros(n, *shape, dtype=torch.long)\n"
    "    masked = torch.ones(n, *shape, dtype=torch.bool)\n"
    "    for step in range(1, passes + 1):\n"
    "        p = model(codes, masked).softmax(-1)\n"
    "        sampled = torch.multinomial(p.flatten(0, -2), 1).view(codes.shape)\n"
    "        codes = torch.where(masked, sampled, codes)\n"
    "        confidence = p.gather(-1, codes.unsqueeze(-1)).squeeze(-1).flatten(1)\n"
    "        remaining = math.floor(codes[0].numel() * math.cos(math.pi / 2 * step / passes))\n"
    "        masked = still_masked(confidence, masked.flatten(1), remaining).view(codes.shape)\n"
    "    return codes"
)
BOUND = "def bits_bound(nats, masked):\n    return "


def changed(source, old, new):
    assert old in source
    return source.replace(old, new)


WRONG = {
    "causal_attention": [
        (changed(ATTENTION, " / math.sqrt(query.shape[-1])", ""), "without the scaling"),
        (changed(ATTENTION, "math.sqrt(query.shape[-1])", "query.shape[-1]"), "divided by d"),
        (changed(ATTENTION, ".triu(1)", ".triu(2)"), "Token i reads token i + 1"),
        (changed(ATTENTION, ".triu(1)", ".triu(0)"), "does not read itself"),
        (changed(ATTENTION, ".triu(1)", ".tril(-1)"), "transposed"),
        (changed(ATTENTION, "-torch.inf", "0"), "exp(0) = 1"),
        (changed(ATTENTION, ".softmax(-1)", ".softmax(-2)"), "over the queries"),
        (
            changed(
                ATTENTION,
                "scores.masked_fill(mask, -torch.inf).softmax(-1)",
                "scores.softmax(-1).masked_fill(mask, 0)",
            ),
            "after the softmax",
        ),
        (changed(ATTENTION, "scores.masked_fill(mask, -torch.inf)", "scores"), "without a mask"),
        (
            "def causal_attention(query, key, value):\n"
            "    return F.scaled_dot_product_attention(query, key, value, is_causal=True)",
            "Two results",
        ),
        (changed(ATTENTION, "weights @ value,", "weights @ key,"), "The weights times the values"),
    ],
    "self_attention": [
        (
            changed(SELF_ATTENTION, "output.transpose(1, 2)", "output"),
            "but not joined correctly",
        ),
        (
            changed(
                SELF_ATTENTION,
                "reshape(B, T, heads, -1).transpose(1, 2)",
                "reshape(B, heads, T, -1)",
            ),
            "are not split correctly",
        ),
        (
            changed(
                SELF_ATTENTION,
                "reshape(B, T, heads, -1).transpose(1, 2)",
                "reshape(B, heads, T, -1)",
            ).replace("output.transpose(1, 2)", "output"),
            "a head contains only some of the tokens",
        ),
        (changed(SELF_ATTENTION, " @ out_weight.T", ""), "out_weight"),
        (
            changed(
                SELF_ATTENTION,
                "reshape(B, T, heads, -1).transpose(1, 2)",
                "reshape(B, T, -1, heads).permute(0, 3, 1, 2)",
            ),
            "Head h of token t",
        ),
    ],
    "attend_with_cache": [
        (
            changed(CACHE, "(query, keys, values)", "(query, keys, values, is_causal=True)"),
            "is_causal=True",
        ),
        (
            changed(CACHE, "(query, keys, values)", "(query, keys[:, :, :-1], values[:, :, :-1])"),
            "but not itself",
        ),
        (
            changed(
                CACHE,
                "F.scaled_dot_product_attention(query, keys, values)",
                "(query @ keys.transpose(-2, -1)).softmax(-1) @ values",
            ),
            "square root of d",
        ),
        (
            changed(CACHE, "[keys, key]", "[key, keys]").replace(
                "[values, value]", "[value, values]"
            ),
            "newest one last",
        ),
        (changed(CACHE, "(query, keys, values)", "(query, key, value)"), "reads only itself"),
    ],
    "masked_loss": [
        (changed(LOSS, "torch.rand(len(codes), 1, 1, 1)", "0.15"), "about 15%"),
        (changed(LOSS, "nats[masked.flatten()].mean()", "nats.mean()"), "mean over all codes"),
        (changed(LOSS, "nats[masked.flatten()]", "nats[~masked.flatten()]"), "inverted"),
        (
            changed(LOSS, "nats[masked.flatten()].mean()", "(nats * masked.flatten()).mean()"),
            "number of all codes",
        ),
        (changed(LOSS, " / math.log(2)", ""), "in nats"),
        (
            changed(
                LOSS,
                "torch.rand(codes.shape) <",
                "torch.rand(*codes.shape[:3], 1).expand(codes.shape) <",
            ),
            "masked together",
        ),
        (
            changed(
                LOSS, "torch.rand(len(codes), 1, 1, 1)", "0.5 * torch.rand(len(codes), 1, 1, 1)"
            ),
            "uniform between 0 and 1",
        ),
    ],
    "still_masked": [
        (
            changed(STILL, "    confidence = confidence.masked_fill(~masked, torch.inf)\n", ""),
            "visible is masked again",
        ),
        (
            changed(
                STILL,
                "    return torch.zeros_like(masked).scatter(1, index, True)",
                "    result = torch.zeros_like(masked)\n    result[:, index] = True\n"
                "    return result & masked",
            ),
            "other rows",
        ),
        (
            changed(STILL, "torch.inf", "-torch.inf").replace("argsort(1)", "argsort(1).flip(1)"),
            "most confident codes stay masked",
        ),
    ],
    "sample_in_passes": [
        (changed(PASSES, "step in range(1, passes + 1)", "step in range(passes)"), "from 0"),
        (
            changed(
                PASSES,
                "torch.multinomial(p.flatten(0, -2), 1).view(codes.shape)",
                "p.argmax(-1)",
            ),
            "not sampling",
        ),
        (
            changed(PASSES, "torch.where(masked, sampled, codes)", "sampled"),
            "visible code is changed",
        ),
        (
            changed(PASSES, "math.cos(math.pi / 2 * step / passes)", "(1 - step / passes)"),
            "number of masked codes",
        ),
        (
            changed(
                PASSES,
                "masked = still_masked(confidence, masked.flatten(1), remaining).view(codes.shape)",
                "pass",
            ),
            "has to be replaced",
        ),
        (
            changed(PASSES, "still_masked(confidence,", "still_masked(-confidence,"),
            "not the most confident",
        ),
    ],
    "bits_bound": [
        (BOUND + "nats[masked].mean() / math.log(2)", "12 times the weight"),
        (BOUND + "(nats.sum(1) / masked.sum(1)).mean()", "in nats"),
        (BOUND + "nats.mean() / math.log(2)", "number of all its codes"),
        (BOUND + "nats.sum(1) / masked.sum(1) / math.log(2)", "mean over the grids"),
    ],
}
