"""The same weights everywhere."""

from __future__ import annotations

import numpy as np

from featreg.arrays import to_numpy
from featreg.conformance.model import check
from featreg.conformance.subject import Subject


@check("values.synthetic", needs=["synthetic_weights"])
def synthetic(subject: Subject) -> None:
    """``weights="synthetic:SEED"`` gives the same bits for one seed on two extractors, other values for another seed,
    and finite ones in every layer; it says so in ``weights_identity``.

    Why: it is how backends are compared with each other (``featreg conform --across``) without a file of weights.
    Caught: nothing in the wild, where each library draws its own random weights, and no two can be compared.
    Mend: fill every parameter, and the statistics of batch normalisation, with ``featreg.plugin.draw_weight``; take the
    seed from ``synthetic_seed(request.weights)``.
    """
    images = subject.images(1)
    identities, outputs = [], []
    for seed in (1, 1, 2):
        with subject.open(weights=f"synthetic:{seed}") as extractor:
            identities.append(extractor.weights_identity())
            outputs.append(extractor(images).map(lambda array: np.array(to_numpy(array))))
    one, two, other = outputs
    first, second = (subject.opening(weights=f"synthetic:{seed}") for seed in (1, 2))
    for layer in subject.layers:
        code = f"{first}(images)[{layer!r}], {first}(images)[{layer!r}]"
        subject.same(two[layer], one[layer], f"one seed gives two different {layer!r}", layer, code)
        problem, code = f"{layer!r} is not finite", f"assert np.isfinite({first}(images)[{layer!r}]).all()"
        subject.expect(np.isfinite(one[layer]).all(), problem, "finite values", "others", layer, code)
    differing = [layer for layer in subject.layers if not np.array_equal(one[layer], other[layer])]
    problem, expected = "two seeds give the same features", "other values in some layer"
    both = f"one, other = {first}(images), {second}(images)"
    code = f"{both}\nassert not all(np.array_equal(one[layer], other[layer]) for layer in one)"
    subject.expect(differing, problem, expected, "the same in all", code=code)
    alike = identities[0] == identities[1] != identities[2]
    problem, found = "the identity does not tell the seeds apart", f"{first}.weights_identity()"
    code = f"assert {found} == {found} != {second}.weights_identity()"
    subject.expect(alike, problem, "one for each seed", identities, code=code)
