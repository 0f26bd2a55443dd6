"""Runs in TensorFlow Recommenders' own environment. Arguments: DIRECTORY QUERY RATE SECONDS.

DIRECTORY/train.npz has `history` (n, h; places from 1, newest last, 0 where it is shorter) and `item` (n,) of the
examples to learn from, and `asked`, the histories to answer. QUERY is "gru" with Adagrad, as in the library's tutorial
on sequential retrieval, or "mean" with Adam. After each epoch the vectors are written to DIRECTORY/epoch_N.npz, and a
line of JSON says how many seconds of training it took to get there; SECONDS is when it is enough.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # it is written for the Keras of TensorFlow 2.15
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras

DIMENSIONS, BATCH = 64, 1_024
place, query, rate, enough = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
held = np.load(place / "train.npz")
history, item, asked, items = held["history"], held["item"], held["asked"], int(held["items"])
share = (np.bincount(item, minlength=items + 1) / len(item)).astype(np.float32)


class Mean(keras.layers.Layer):  # type: ignore[misc]
    """The mean of what is there; zeros for an empty history, where the library's own layer divides by nothing."""

    def call(self, vectors, mask=None):  # type: ignore[no-untyped-def]
        """Shape (n, d) of (n, h, d) and a mask (n, h)."""
        there = tf.cast(mask, vectors.dtype)[:, :, None]
        return tf.reduce_sum(vectors * there, 1) / tf.maximum(tf.reduce_sum(there, 1), 1.0)


class Retrieval(tfrs.Model):  # type: ignore[misc]
    """The tutorial's model, with the corrections that the library offers."""

    def __init__(self) -> None:
        super().__init__()
        pool = keras.layers.GRU(DIMENSIONS) if query == "gru" else Mean()
        self.queries = keras.Sequential([keras.layers.Embedding(items + 1, DIMENSIONS, mask_zero=True), pool])
        self.items = keras.layers.Embedding(items + 1, DIMENSIONS)
        self.task = tfrs.tasks.Retrieval(remove_accidental_hits=True)

    def compute_loss(self, inputs, training=False):  # type: ignore[no-untyped-def]
        """In-batch softmax, corrected for how often each item is sampled."""
        return self.task(
            self.queries(inputs["history"]),
            self.items(inputs["item"]),
            candidate_sampling_probability=inputs["share"],
            candidate_ids=inputs["item"],
            compute_metrics=not training,
        )


tf.random.set_seed(0)
model = Retrieval()
model.compile(optimizer=keras.optimizers.Adagrad(rate) if query == "gru" else keras.optimizers.Adam(rate))
examples = tf.data.Dataset.from_tensor_slices({"history": history, "item": item, "share": share[item]})
examples = examples.cache().shuffle(len(item), seed=0).batch(BATCH).prefetch(2)
seconds, epoch = 0.0, 0
while seconds < enough:
    begun = time.perf_counter()
    model.fit(examples, epochs=1, verbose=0)
    seconds += time.perf_counter() - begun
    np.savez(place / f"epoch_{epoch}.npz", queries=model.queries(asked).numpy(), items=model.items.get_weights()[0])
    print(json.dumps({"seconds": seconds}), flush=True)
    epoch += 1
