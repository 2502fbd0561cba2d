"""Wrong answers to the tasks of notebook 04: task -> (source, words of the reply)."""

from vqlib.course.tasks.prior import TwoStackBlock

BITS = (
    "def bits_per_code(logits, codes):\n"
    "    log_p = logits.log_softmax({axis})\n"
    "    return {result}\n"
)
CHOSEN = "log_p.gather(-1, codes[..., None])"
FORCING = "def teacher_forcing(codes, start):\n    targets = codes.flatten(1)\n"
MASK = """
def causal_mask(mask_type, in_channels, out_channels, kernel_size, slots):
    mask = torch.zeros(out_channels, in_channels, kernel_size, kernel_size)
    center = kernel_size // 2
    mask[:, :, :center] = 1
    mask[:, :, center, :center] = 1
    in_slot, out_slot = torch.arange(in_channels), torch.arange(out_channels)
    in_slot, out_slot = {slots}
    earlier = torch.lt if mask_type == "{strict}" else torch.le
    mask[:, :, center, center] = {center}
    {extra}
    return mask
"""
SLOTS = "in_slot * slots // in_channels, out_slot * slots // out_channels"
CENTER = "earlier(in_slot[None], out_slot[:, None]).float()"
CAUSAL = """
def is_causal(model, codes, num_embeddings):
    before = model(codes).flatten(1, 3)
    for i in range({first}, before.shape[1]):
        changed = codes.flatten(1).clone()
        changed[:, {change}] = (changed[:, {change}] + 1) % num_embeddings
        after = model(changed.view_as(codes)).flatten(1, 3)
        if not torch.{same}(after[:, {kept}], before[:, {kept}]):
            return False
    return True
"""
VERTICAL = "def vertical_layer(x, weight):\n    return {}\n"
LABELS = "def drop_labels(labels, num_classes, p):\n    return {}\n"


def block(old, new):
    """The solution of TwoStackBlock with a part exchanged."""
    assert old in TwoStackBlock.solution
    return TwoStackBlock.solution.replace(old, new)


WRONG = {
    "bits_per_code": [
        (BITS.format(axis=-1, result=f"-{CHOSEN}.mean()"), "nats"),
        (BITS.format(axis=3, result=f"-{CHOSEN}.mean() / math.log(2)"), "the slots"),
        (
            BITS.format(axis=-1, result=f"-{CHOSEN}.sum() / len(codes) / math.log(2)"),
            "sum over an image",
        ),
        (BITS.format(axis=1, result=f"-{CHOSEN}.mean()"), "the rows. These are nats"),
        (BITS.format(axis=-1, result=f"{CHOSEN}.mean() / math.log(2)"), "expected"),
        (
            "def bits_per_code(logits, codes):\n"
            "    return F.cross_entropy(logits.detach().flatten(0, 3), codes.flatten())"
            " / math.log(2)",
            "no gradient",
        ),
    ],
    "teacher_forcing": [
        (FORCING + "    return targets.roll(1, 1), targets", "last code"),
        (FORCING + "    return F.pad(targets[:, 1:], (0, 1), value=start), targets", "direction"),
        (FORCING + "    return targets, targets", "target itself"),
        (FORCING + "    return F.pad(targets, (1, 0), value=start), targets", "shape"),
        (FORCING + "    return targets[:, :-1], targets[:, 1:]", "targets"),
    ],
    "causal_mask": [
        (MASK.format(slots=SLOTS, strict="B", center=CENTER, extra=""), "other mask"),
        (
            MASK.format(
                slots=SLOTS, strict="A", center=CENTER, extra="mask[:, :, center + 1:] = 1"
            ),
            "below",
        ),
        (
            MASK.format(
                slots=SLOTS, strict="A", center=CENTER, extra="mask[:, :, center, center + 1:] = 1"
            ),
            "right",
        ),
        (
            MASK.format(
                slots="in_slot % slots, out_slot % slots", strict="A", center=CENTER, extra=""
            ),
            "which slots",
        ),
        (
            MASK.format(
                slots=SLOTS,
                strict="A",
                center="earlier(out_slot[:, None], in_slot[None]).float()",
                extra="",
            ),
            "exchanged",
        ),
        (
            MASK.format(slots=SLOTS, strict="A", center="float(mask_type == 'B')", extra=""),
            "center",
        ),
        (
            "def causal_mask(mask_type, in_channels, out_channels, kernel_size, slots):\n"
            "    return vqlib.MaskedConv2d(\n"
            "        mask_type, in_channels, out_channels, kernel_size, slots=slots).mask",
            "MaskedConv2d",
        ),
    ],
    "is_causal": [
        (CAUSAL.format(first=0, change="i:", kept=":i", same="equal"), "passes your test"),
        (CAUSAL.format(first=0, change="i:", kept=":", same="equal"), "rejects it"),
        (CAUSAL.format(first=1, change="i:", kept=":i", same="equal"), "passes your test"),
        (
            CAUSAL.format(first=0, change="i : i + 1", kept="i : i + 1", same="equal"),
            "next slot",
        ),
        (CAUSAL.format(first=0, change="-1:", kept=":-1", same="equal"), "passes your test"),
        ("def is_causal(model, codes, num_embeddings):\n    return True", "passes your test"),
        ("def is_causal(model, codes, num_embeddings):\n    return False", "rejects it"),
    ],
    "vertical_layer": [
        (VERTICAL.format("F.conv2d(F.pad(x, (3, 3, 1, 1)), weight)"), "below"),
        (VERTICAL.format("F.conv2d(F.pad(x, (3, 3, 2, 0)), weight).roll(1, 2)"), "last row"),
        (VERTICAL.format("F.conv2d(F.pad(x, (3, 3, 4, 0))[:, :, :-2], weight)"), "r - 2"),
        (VERTICAL.format("F.conv2d(F.pad(x, (3, 3, 3, 0)), weight)"), "one row too many"),
        (VERTICAL.format("F.conv2d(F.pad(x, (3, 3, 0, 0)), weight)"), "shape"),
        (VERTICAL.format("F.conv2d(F.pad(x, (3, 3, 3, 0))[:, :, 1:], weight)"), "row r itself"),
        (
            VERTICAL.format("F.conv2d(F.pad(vqlib.pixelcnn.down_shift(x, 3), (3, 3)), weight)"),
            "down_shift",
        ),
    ],
    "TwoStackBlock": [
        (block("return v_out, h_stack", "return v_stack + v_out, h_stack"), "no residual"),
        (block("h_stack + h_out", "h_out"), "residual connection of the horizontal"),
        (block("+ self.vertical_to_horizontal(v_features)", ""), "rows above"),
        (block("self.left(h_stack)", "self.horizontal(h_stack)"), "position itself"),
        (block(" + conditional_bias", ""), "class"),
        (block("a.tanh()", "a"), "gated linear unit"),
        (
            block("self.halves(v_features)", "v_features.chunk(2, 1)"),
            "vertical stack: did you split with `halves`?",
        ),
        (
            block("self.halves(h_features)", "h_features.chunk(2, 1)"),
            "horizontal stack: did you split with `halves`?",
        ),
        (block("a.tanh() * b.sigmoid()", "b.tanh() * a.sigmoid()"), "exchanged"),
        (
            block(
                "horizontal_out(a.tanh() * b.sigmoid())", "horizontal_out(b.tanh() * a.sigmoid())"
            ),
            "In the horizontal stack tanh and sigmoid",
        ),
        (block("self.horizontal_out(a.tanh() * b.sigmoid())", "a.tanh() * b.sigmoid()"), "_out"),
        (
            "class TwoStackBlock(vqlib.pixelcnn.GatedBlock):\n    pass",
            "calls vqlib.pixelcnn.GatedBlock",
        ),
    ],
    "drop_labels": [
        (LABELS.format("labels.masked_fill(torch.rand(labels.shape) < p, 0)"), "classes"),
        (
            LABELS.format("labels.masked_fill(torch.rand(()) < p, num_classes)"),
            "all labels are dropped or none",
        ),
        (LABELS.format("labels.masked_fill(torch.rand(labels.shape) > p, num_classes)"), "1 - p"),
        (LABELS.format("labels.masked_fill(torch.rand(labels.shape) < p, -1)"), "other indices"),
        (LABELS.format("labels.masked_fill_(torch.rand(labels.shape) < p, 1)"), "in place"),
        (LABELS.format("labels * (torch.rand(labels.shape) < p)"), "classes"),
    ],
}
