"""Keras: the recipe of its guide "Transfer learning & fine-tuning", on EfficientNet-Lite0 built from Keras layers.

150 px, flips and rotations, batch 64; the frozen network (in inference mode, as the guide insists) under dropout 0.2
and a new dense layer, Adam; then everything with Adam at 1e-5. The guide's 2 epochs to 1 are kept as a ratio and done
as often as fits. Keras' own applications would download weights; the layers below take the same file as the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import peer_tools as tools

if TYPE_CHECKING:
    import keras

SIZE, BATCH, VALID = 150, 64, 0.1
STAGES = (  # kernel, stride, expansion, channels, repeats
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
GRAPH_SECONDS = 3.0
"""Tracing a graph anew, for prediction."""
PLANNED_COST = 3.0
"""Seconds of an epoch of everything for each second of a frozen one."""


def main() -> None:
    """Train the head, then everything, then predict."""
    job = tools.job()
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(job.seed)
    reserve, ends = [0.0], []

    class Deadline(keras.callbacks.Callback):
        """Ends a fit when only the time for test is left, and notes when batches end."""

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            ends.append(job.left())
            self.model.stop_training |= ends[-1] <= reserve[0]

    train, valid, test = _datasets(job)
    base = lite0(job)
    base.trainable = False
    inputs = keras.Input((SIZE, SIZE, 3))
    outputs = base(keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs), training=False)
    outputs = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(outputs))
    model = keras.Model(inputs, keras.layers.Dense(len(job.classes))(outputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(), loss=loss, metrics=["accuracy"])
    fit = {"validation_data": valid, "callbacks": [Deadline()], "verbose": 0}
    model.fit(train, epochs=1, **fit)
    epoch = 1.1 * (ends[0] - ends[-1]) / (len(ends) - 1) * len(ends)  # the first batch is the graph's; val is a tenth
    reserve[0] = GRAPH_SECONDS + 1.2 * epoch * len(job.test) / len(job.train)
    allowed = tools.MARGIN * (job.left() - reserve[0] - GRAPH_SECONDS) + epoch
    rounds = max(0, int(allowed / (epoch * (2 + PLANNED_COST))))
    if more := max(2 * rounds, 1) - 1:
        model.fit(train, epochs=more, **fit)
    if rounds:
        base.trainable = True
        model.compile(optimizer=keras.optimizers.Adam(1e-5), loss=loss, metrics=["accuracy"])
        model.fit(train, epochs=rounds, **fit)
    found = tf.argmax(model.predict(test, verbose=0), axis=1).numpy().tolist()
    facts = {"image_size": SIZE, "epochs_frozen": more + 1, "epochs_of_everything": rounds}
    job.answer([job.classes[label] for label in found], facts)


def lite0(job: tools.Job) -> keras.Model:
    """Build the network without its head: layers carry timm's names, and take the weights that stand under them."""
    import keras
    from safetensors.numpy import load_file

    inputs = keras.Input((None, None, 3))
    x = _conv(inputs, "conv_stem", "bn1", 32, 3, 2)
    for stage, (kernel, stride, expansion, channels, repeats) in enumerate(STAGES):
        for number in range(repeats):
            at, before = f"blocks.{stage}.{number}", x
            now = stride if number == 0 else 1
            if expansion == 1:
                x = _depthwise(x, f"{at}.conv_dw", f"{at}.bn1", kernel, now)
                x = _conv(x, f"{at}.conv_pw", f"{at}.bn2", channels, 1, act=False)
            else:
                x = _conv(x, f"{at}.conv_pw", f"{at}.bn1", expansion * x.shape[-1], 1)
                x = _depthwise(x, f"{at}.conv_dw", f"{at}.bn2", kernel, now)
                x = _conv(x, f"{at}.conv_pwl", f"{at}.bn3", channels, 1, act=False)
            if now == 1 and before.shape[-1] == channels:
                x = keras.layers.add([before, x])
    model = keras.Model(inputs, _conv(x, "conv_head", "bn2", 1280, 1))
    tensors = load_file(job.weights)
    for layer in model.layers:
        if f"{layer.name}.weight" not in tensors:
            continue
        weight = tensors[f"{layer.name}.weight"]
        if weight.ndim == 1:
            rest = [tensors[f"{layer.name}.{part}"] for part in ("bias", "running_mean", "running_var")]
            layer.set_weights([weight, *rest])
        else:
            by_depth = isinstance(layer, keras.layers.DepthwiseConv2D)
            layer.set_weights([weight.transpose((2, 3, 0, 1) if by_depth else (2, 3, 1, 0))])
    return model


def _conv(
    x: keras.KerasTensor, name: str, norm: str, channels: int, kernel: int, stride: int = 1, *, act: bool = True
) -> keras.KerasTensor:
    import keras

    layer = keras.layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False, name=name)
    return _norm(layer(x), norm, act=act)


def _depthwise(x: keras.KerasTensor, name: str, norm: str, kernel: int, stride: int) -> keras.KerasTensor:
    import keras

    layer = keras.layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=name)
    return _norm(layer(x), norm, act=True)


def _norm(x: keras.KerasTensor, name: str, *, act: bool) -> keras.KerasTensor:
    import keras

    x = keras.layers.BatchNormalization(epsilon=1e-3, name=name)(x)
    return keras.layers.ReLU(6.0)(x) if act else x


def _datasets(job: tools.Job) -> list[object]:
    """Read train, a tenth of it to validate on, and test, as the guide's kind of dataset."""
    import keras

    common = {"image_size": (SIZE, SIZE), "batch_size": BATCH, "verbose": False}
    parts = [
        keras.utils.image_dataset_from_directory(
            job.data / "train", validation_split=VALID, subset=subset, seed=job.seed, **common
        )
        for subset in ("training", "validation")
    ]
    changes = [keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(0.1)]

    def augmented(images: object, labels: object) -> tuple[object, object]:
        for change in changes:
            images = change(images)
        return images, labels

    test = keras.utils.image_dataset_from_directory(job.data / "test", labels=None, shuffle=False, **common)
    assert [path.rpartition("/")[2] for path in test.file_paths] == [path.name for path in job.test]
    return [parts[0].map(augmented).prefetch(2), parts[1].prefetch(2), test.prefetch(2)]


if __name__ == "__main__":
    main()
