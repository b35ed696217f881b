"""Do states say anything of tags? A check before a frozen probe is believed.

Where no tag has the most of the words, a probe of states that say nothing chooses among the frequent tags by
chance, and so scores below a constant predictor by accuracy, and above it by the F1 of spans. With this
check it is the constant predictor. Shapes: K words, D width, C tags.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

STRENGTH = 0.01  # inverse; below that of the probe, which overfits its likelihood where words are few


def says_something(states: Tensor, labels: Tensor, held_out_share: float) -> bool:
    """Does a logistic regression give the last words a higher likelihood than the tags' frequencies do?

    Args:
        states: (K, D); labels: (K,) tags; both in the order of the draw.
        held_out_share: of the words, that are not fitted to.
    """
    n = len(labels) - round(held_out_share * len(labels))
    seen, counts = np.unique(labels[:n].numpy(), return_counts=True)
    asked = np.isin(labels[n:].numpy(), seen)  # of other tags neither knows
    if len(seen) < 2 or not asked.any():
        return False
    scaler = StandardScaler().fit(states[:n].cpu().double().numpy())
    fitted, held_out = (scaler.transform(part.cpu().double().numpy()) for part in (states[:n], states[n:]))
    classifier = LogisticRegression(C=STRENGTH, max_iter=500).fit(fitted, labels[:n].numpy())
    place = np.searchsorted(seen, labels[n:].numpy()[asked])
    found = classifier.predict_log_proba(held_out[asked])[np.arange(len(place)), place]
    return bool(found.mean() > np.log(counts / n)[place].mean())
