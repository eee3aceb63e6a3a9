"""scikit-learn on frozen features: one pass of eager torch, standardised, `LogisticRegressionCV` with its defaults.

The largest picture size is taken at which features of train and test need at most 60 % of the time.
"""

from __future__ import annotations

import peer_tools as tools

FEATURES = 0.6
FOLDS = 5
NUM_STRENGTHS = 10


def main() -> None:
    """Compute features, fit, predict."""
    job = tools.job()
    import torch
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from torch.utils.data import DataLoader

    network = tools.lite0(job, num_classes=0).eval()
    paces, files = tools.pace(network), [*job.train, *((path, -1) for path in job.test)]
    size = tools.largest(lambda size: paces.seconds(len(files), size, training=False), FEATURES * job.left())
    loader = DataLoader(tools.Pictures(files, tools.transform(size)), batch_size=64, num_workers=2)
    with torch.no_grad():
        features = torch.cat([network(images) for images, _ in loader]).numpy()
    facts = {"image_size": size, "features_seconds": round(job.seconds - tools.END_SECONDS - job.left(), 1)}
    num = len(job.train)
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(Cs=NUM_STRENGTHS, cv=FOLDS, max_iter=1_000, use_legacy_attributes=False, l1_ratios=(0.0,)),
    )
    model.fit(features[:num], [label for _, label in job.train])
    facts["C"] = float(model[-1].C_)
    job.answer([job.classes[label] for label in model.predict(features[num:]).tolist()], facts)


if __name__ == "__main__":
    main()
