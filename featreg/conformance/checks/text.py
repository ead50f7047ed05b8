"""The text tower: the right numbers for the right texts, and nothing cut off or normalised that nobody asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from featreg.conformance.checks.values import ROUNDING
from featreg.conformance.model import check
from featreg.conformance.oracles import ask_oracle, oracle_code
from featreg.conformance.subject import Floats, Subject
from featreg.errors import CapabilityError, InputError, LayerError
from featreg.extractor import Extractor, create_extractor
from featreg.spec import Layer

HEAD = "text_embedding"

WORDS = (8, 64, 512)
"""How many words a long text has; the last is beyond the context of every known text tower that has one."""


def _long(words: int, last: str) -> str:
    return " ".join([*["cat"] * words, last])


@contextlib.contextmanager
def _offered(subject: Subject, layers: Sequence[Layer], **options: Any) -> Iterator[Extractor | None]:
    """An extractor with options, None where the backend refuses them: it need not have them, nor ignore them."""
    with contextlib.ExitStack() as stack:
        try:
            extractor = stack.enter_context(subject.open(layers, options=options))
        except CapabilityError:
            subject.expect(True, "the backend has no such option")
            yield None
        else:
            yield extractor


def _no_oracle(subject: Subject) -> str:
    return "" if subject.case.text_oracle is not None else "the case has no oracle of texts"


@check("text.values", needs=["text"], when=_no_oracle)
def values(subject: Subject) -> None:
    """Each layer of the text tower equals what the author's oracle of texts computes without the code under test,
    within rtol 1e-4 and atol 1e-5 in float32 (1e-5 of the largest value, where that is above 1).

    Why: this is the one check that knows the truth of texts.
    Caught: CoCa, which normalises by default where CLIP does not (open_clip #68); a tokenizer of another model, as
    open_clip's ``get_tokenizer("nope")`` returns one.
    Mend: compare with the library's own text encoder on the library's own tokens.
    """
    assert subject.case.text_oracle is not None
    texts = subject.texts()
    with subject.open(subject.case.text_layers) as extractor:
        wanted = ask_oracle(subject, subject.case.text_oracle, extractor.module)(texts)
        features = extractor(texts)
    for layer in wanted:
        problem, code = f"{layer!r} has other values than its oracle", oracle_code(subject, layer, texts=True)
        subject.close(features[layer], wanted[layer], problem, layer, code)


@check("text.has_oracle", level="SHOULD", needs=["text"])
def has_oracle(subject: Subject) -> None:
    """The case of a model with a text tower carries an oracle of texts, which gives the true values of a layer.

    Why: without one no check knows what the numbers of a text should be; that of images says nothing of them.
    Caught: nothing in the wild. A tower that reads every text as another is right by all checks that compare it with
    itself.
    Mend: yield ``Case(..., text_oracle=...)``: a function of (model, module) that encodes texts with the library's own
    tokenizer and tower, and the weights of ``module``.
    """
    given = subject.case.text_oracle is not None
    subject.expect(given, "the case has no oracle of texts", "Case(..., text_oracle=...)", "None", code="")


@check("text.shapes", needs=["text"])
def shapes(subject: Subject) -> None:
    """Batches of 1, 2 and 3 texts give float32 NumPy arrays of exactly the shape that the layer is described with.

    Why: a caller stores texts as he stores images; one text is a batch of one.
    Caught: padding to the longest text of a batch, which makes the length of a sequence depend on its neighbours; a
    ``squeeze()`` after the pooling, which drops the batch axis of a single text.
    Mend: pad to the context length, describe sequences by ``FeatureInfo.length``, and never squeeze.
    """
    with subject.open(subject.case.text_layers) as extractor:
        for count in (1, 2, 3):
            features = extractor(subject.texts(*subject.case.texts[:count]))
            for layer, info in extractor.feature_info.items():
                wanted, array = info.shape(count, *subject.case.size), features[layer]
                got = (type(array).__name__, str(array.dtype), tuple(array.shape))
                problem = f"{layer!r} of {count} texts is not as described"
                subject.expect(got == ("ndarray", "float32", wanted), problem, wanted, got, layer)


@check("text.repeat", needs=["text"])
def repeat(subject: Subject) -> None:
    """The same texts give the same bits, also after other texts and on an extractor that has just been opened.

    Why: the classes of a zero-shot classifier are encoded once and compared with for ever.
    Caught: text towers left in training mode, whose dropout draws; weights of a second tower drawn from a generator
    that the first has moved on.
    Mend: set evaluation mode for the whole network; seed before it is built, whichever tower is asked for.
    """
    texts = subject.texts()
    with subject.open(subject.case.text_layers) as extractor:
        first = extractor(texts).map(np.array)
        extractor(texts[::-1])
        second = extractor(texts)
    third = subject.run(texts, subject.case.text_layers)
    for layer in subject.case.text_layers:
        again = (
            f"first = extractor(texts)[{layer!r}].copy()\nextractor(texts[::-1])\nextractor(texts)[{layer!r}], first"
        )
        subject.same(second[layer], first[layer], f"the same texts give another {layer!r}", layer, again)
        opened = subject.opening(subject.case.text_layers)
        reopened = f"{opened}(texts)[{layer!r}], {opened}(texts)[{layer!r}]"
        subject.same(third[layer], first[layer], f"two extractors of one request differ in {layer!r}", layer, reopened)


@check("text.batch", needs=["text"])
def batch(subject: Subject) -> None:
    """Row i is text i: a text gives the same features alone and among others, in whichever order, beyond rounding.

    Why: a prompt must not mean something else beside a longer one.
    Caught: attention over the padding, which reaches as far as the longest text of the batch; texts sorted by length
    to save padding, and not sorted back.
    Mend: mask the padding; keep the batch axis in order.
    """
    texts = subject.texts()
    with subject.open(subject.case.text_layers) as extractor:
        together, turned = extractor(texts), extractor(texts[::-1])
        for row, text in enumerate(texts):
            alone = extractor([text])
            for layer in subject.case.text_layers:
                code = f"extractor(texts)[{layer!r}][{row}], extractor(texts[{row}:{row + 1}])[{layer!r}][0]"
                problem = f"{layer!r} of a text depends on the other texts"
                subject.close(together[layer][row], alone[layer][0], problem, layer, code, **ROUNDING)
    for layer in subject.case.text_layers:
        code = f"extractor(texts[::-1])[{layer!r}], extractor(texts)[{layer!r}][::-1]"
        problem = f"the rows of {layer!r} are not the texts in order"
        subject.close(turned[layer], together[layer][::-1], problem, layer, code, **ROUNDING)


@check("text.distinct", needs=["text"])
def distinct(subject: Subject) -> None:
    """Different texts give different features in every layer of the text tower.

    Why: a constant has the right shape and repeats bit for bit.
    Caught: a pooling that takes a position before the text begins, or one that causal attention lets see nothing.
    Mend: take the position that the library takes (the end token, or the class token).
    """
    texts = subject.texts()
    features = subject.run(texts, subject.case.text_layers)
    for layer, array in features.items():
        rows = {np.ascontiguousarray(row).tobytes() for row in array}
        wanted = len(set(texts))
        problem = f"different texts give the same {layer!r}"
        code = f"assert len(np.unique(extractor(texts)[{layer!r}], axis=0)) == {wanted}"
        subject.expect(len(rows) == wanted, problem, f"{wanted} different rows", len(rows), layer, code)


@check("text.long", needs=["text"])
def long(subject: Subject) -> None:
    """A text that is too long raises InputError; one that is taken counts to its last word.

    Why: what is silently cut off is lost, often the very words that tell two prompts apart.
    Caught: open_clip's tokenizer cuts at 77 tokens and says nothing.
    Mend: count the tokens before they are cut, and raise InputError.
    """
    with subject.open([HEAD]) as extractor:
        for words in WORDS:
            texts = subject.texts(_long(words, "dog"), _long(words, "sea"))
            try:
                one, two = extractor(texts)[HEAD]
            except InputError:
                break
            problem = f"the end of a text of {words + 1} words counts for nothing"
            got = "the same embedding with another last word"
            subject.expect(not np.array_equal(one, two), problem, "InputError, or another embedding", got, HEAD)
    subject.expect(True, "long texts are refused or read to their end")


@check("text.truncate", needs=["text"])
def truncate(subject: Subject) -> None:
    """The option ``truncate``, where the backend has it, makes it take long texts and leaves short ones as they are;
    ``truncate=False`` is the default.

    Why: cutting is for those who ask for it, by one name in every backend.
    Caught: open_clip's tokenizer, which always cuts; options that are accepted and do nothing.
    Mend: hand the option on to the tokenizer, or refuse it with CapabilityError.
    """
    texts = subject.texts()
    plain = subject.run(texts, [HEAD])[HEAD]
    with _offered(subject, [HEAD], truncate=True) as extractor:
        if extractor is None:
            return
        subject.same(extractor(texts)[HEAD], plain, "truncate=True changes short texts", HEAD)
        long_text = subject.texts(_long(WORDS[-1], "dog"))
        cut = extractor(long_text)[HEAD]
        subject.expect(np.isfinite(cut).all(), "a text that was cut has no finite embedding", "finite", cut, HEAD)
    unlimited = _takes(subject, long_text)
    with subject.open([HEAD], options={"truncate": False}) as extractor:
        if unlimited:
            extractor(long_text)
        else:
            subject.raises(InputError, partial(extractor, long_text), "a long text and truncate=False", "")


def _takes(subject: Subject, texts: list[str]) -> bool:
    """Whether the model takes texts without any option."""
    try:
        subject.run(texts, [HEAD])
    except InputError:
        return False
    return True


@check("text.normalized", needs=["text"])
def normalized(subject: Subject) -> None:
    """The option ``normalize``, where the backend has it, gives ``text_embedding`` and ``embedding`` the length one and
    keeps their direction; ``normalize=False`` is the default.

    Why: who compares by cosine must know whether that is done, in one way for every model.
    Caught: CoCa normalises by default and CLIP does not (open_clip #68).
    Mend: normalise where it is asked for, both towers alike, or refuse the option with CapabilityError.
    """
    inputs: list[tuple[str, Any]] = [(HEAD, subject.texts())]
    if any(info.head == "embedding" for info in subject.info.features):
        inputs.append(("embedding", subject.images(2)))
    for layer, given in inputs:
        plain = subject.run(given, [layer])[layer]
        unit = plain / np.linalg.norm(plain, axis=-1, keepdims=True)
        with _offered(subject, [layer], normalize=True) as extractor:
            if extractor is None:
                return
            subject.close(extractor(given)[layer], unit, f"{layer!r} is not normalised as was asked for", layer)
        with subject.open([layer], options={"normalize": False}) as extractor:
            subject.same(extractor(given)[layer], plain, f"normalize=False is not the default of {layer!r}", layer)


@check("text.refused", needs=["text"])
def refused(subject: Subject) -> None:
    """A text tower takes lists of strings: a lone string, no text, bytes and images raise InputError. An image tower
    takes no texts.

    Why: a lone string is a list of letters, and gives as many embeddings.
    Caught: tokenizers that take a string for a batch of one, and whatever iterates for a batch of many.
    Mend: let ``takes_text`` be true for the layers of the text tower alone; the core checks the rest.
    """
    image = subject.images(1)
    wrong: list[Any] = ["a cat", [], [b"a cat"], [1], image]
    with subject.open(subject.case.text_layers) as extractor:
        for batch in wrong:
            what = f"{type(batch).__name__} as a batch of texts"
            subject.raises(
                InputError, partial(extractor, batch), what, f"extractor({'images' if batch is image else batch!r})"
            )
    with subject.open() as extractor:
        subject.raises(InputError, partial(extractor, subject.texts()), "texts as images", "extractor(texts)")


@check("text.mixed", needs=["text"])
def mixed(subject: Subject) -> None:
    """Layers of both towers in one request raise LayerError, whichever comes first.

    Why: one call has one batch, of images or of texts.
    Caught: CLIP's ``forward(image, text)``, which runs both towers and hands back None for the one without input.
    Mend: raise LayerError from ``open``; the core does where the features say which tower they are of.
    """
    layers = [subject.case.text_layers[0], subject.layers[0]]
    for asked in (layers, layers[::-1]):
        code = f"featreg.create_extractor({subject.model!r}, {asked})"
        subject.raises(LayerError, partial(_open, subject, asked), "asking for both towers", code)


def _open(subject: Subject, layers: Sequence[Layer]) -> None:
    create_extractor(subject.model, layers, registry=subject.registry).close()


def _no_scale(subject: Subject) -> str:
    return "" if subject.case.logit_scale is not None else "the case says no scale of the logits"


@check("text.logits", needs=["text"], when=_no_scale)
def logits(subject: Subject) -> None:
    """The layer ``logits`` with the option ``texts`` compares each image with each text: ``scale * cosine + bias`` of
    ``embedding`` and ``text_embedding``, with the scale and bias that the case says are the model's.

    Why: a softmax over the texts is CLIP's classifier, and the scale decides how sure it is.
    Caught: cosines without the scale, which is a hundred in trained models; SigLIP's bias left out.
    Mend: multiply embeddings of unit length, then apply the model's own scale and bias.
    """
    assert subject.case.logit_scale is not None
    scale, bias = subject.case.logit_scale
    texts, images = list(subject.case.texts), subject.images(2)
    cosines = _units(subject.run(images, ["embedding"])["embedding"]) @ _units(subject.run(texts, [HEAD])[HEAD]).T
    for asked, wanted in ((texts, cosines), (texts[::-1], cosines[:, ::-1])):
        got = subject.run(images, ["logits"], options={"texts": asked})["logits"]
        problem = "the logits are not those of images and texts"
        subject.close(got, scale * wanted + bias, problem, "logits", **ROUNDING)


def _units(embeddings: Floats) -> Floats:
    doubles = embeddings.astype(np.float64)
    lengths: Floats = np.linalg.norm(doubles, axis=-1, keepdims=True)
    return doubles / lengths
