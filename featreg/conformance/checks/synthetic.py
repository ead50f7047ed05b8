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
    for layer in subject.layers:
        subject.same(two[layer], one[layer], f"one seed gives two different {layer!r}", layer)
        subject.expect(np.isfinite(one[layer]).all(), f"{layer!r} is not finite with synthetic weights", layer=layer)
    differing = [layer for layer in subject.layers if not np.array_equal(one[layer], other[layer])]
    subject.expect(differing, "two seeds give the same features", "other values in some layer", "the same in all")
    alike = identities[0] == identities[1] != identities[2]
    subject.expect(alike, "the identity does not tell the seeds apart", "one for each seed", identities)
