"""Models of `keras.applications`, and Keras layers, with the JAX backend."""

import functools

from public.common import Model, normal, with_package


def keras_model(model, x, **more) -> Model:
    """A Keras model as a function of its variables."""
    names = [[v.path for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)]
    params = [
        {name: v.value for name, v in zip(ns, vs, strict=True)}
        for ns, vs in zip(names, (model.trainable_variables, model.non_trainable_variables), strict=True)
    ]

    def fn(params, x):
        trainable, other = ([p[n] for n in ns] for p, ns in zip(params, names, strict=True))
        return model.stateless_call(trainable, other, x, training=False)[0]

    return Model(fn, params, x, **more)


def _application(name: str, size: int, **options) -> Model:
    import keras

    keras.config.set_floatx("float64")
    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None, **options)
    return keras_model(model, normal(1, size, size, 3))


SIZES = {
    "VGG16": 32,
    "VGG19": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "ResNet101": 32,
    "ResNet101V2": 32,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "DenseNet121": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "NASNetMobile": 32,
    "EfficientNetB0": 32,
    "EfficientNetB3": 32,
    "EfficientNetV2B0": 32,
    "EfficientNetV2S": 32,
    "ConvNeXtTiny": 32,
    "ConvNeXtBase": 32,
}
MODELS = {f"keras.applications.{name}": functools.partial(_application, name, size) for name, size in SIZES.items()}


def _layers(build, *shape: int, **more) -> Model:
    """A network of Keras layers, built by a function of `keras.layers`."""
    import keras

    keras.config.set_floatx("float64" if more.get("float64", True) else "float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape[1:])
    model = keras.Model(inputs, keras.layers.Dense(3)(build(keras.layers, inputs)))
    return keras_model(model, normal(*shape), **more)


def _transformer(layers, x):
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 4)(y, y)
    y = layers.LayerNormalization()(x)
    x = x + layers.Dense(8)(layers.Dense(16, activation="gelu")(y))
    return layers.GlobalAveragePooling1D()(layers.RMSNormalization()(x))


def _unet(layers, x):
    skip = layers.Activation("relu")(layers.GroupNormalization(2)(layers.Conv2D(4, 3, padding="same")(x)))
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(skip))
    y = layers.Concatenate()(
        [skip, layers.UpSampling2D(interpolation="bilinear")(y), layers.Conv2DTranspose(4, 2, 2)(y)]
    )
    return layers.SeparableConv2D(4, 3, activation="leaky_relu")(y)


LAYERS = {
    "LSTM, bidirectional": (lambda ls, x: ls.Bidirectional(ls.LSTM(4))(x), (2, 4, 3), {"more": {"dense": 14}}),
    "GRU": (lambda ls, x: ls.GRU(4)(x), (2, 4, 3), {"more": {"dense": 4}}),
    "SimpleRNN": (lambda ls, x: ls.SimpleRNN(4)(x), (2, 4, 3), {"more": {"dense": 4}, "float64": False}),
    "Transformer block": (_transformer, (2, 4, 8), {}),
    "U-Net": (_unet, (2, 8, 8, 2), {}),
    "Attention": (lambda ls, x: ls.Attention()([x, x]), (2, 4, 8), {}),
    "GroupedQueryAttention": (lambda ls, x: ls.GroupQueryAttention(4, 4, 2)(x, x), (2, 4, 8), {}),
    "Conv3D": (lambda ls, x: ls.Flatten()(ls.Conv3D(4, 3, activation="elu")(x)), (2, 4, 4, 4, 2), {}),
    "Conv1D, causal": (lambda ls, x: ls.Conv1D(4, 3, padding="causal", activation="silu")(x), (2, 6, 2), {}),
    "AveragePooling, PReLU": (lambda ls, x: ls.PReLU()(ls.AveragePooling2D(2)(ls.Conv2D(4, 3)(x))), (2, 8, 8, 2), {}),
    "ConvLSTM1D": (lambda ls, x: ls.Flatten()(ls.ConvLSTM1D(2, 3)(x)), (1, 3, 5, 2), {"more": {"conv": 20}}),
}
MODELS |= {
    f"keras.layers: {name}": functools.partial(_layers, build, *shape, **more)
    for name, (build, shape, more) in LAYERS.items()
}
with_package("keras", MODELS)
