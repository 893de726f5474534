#!/usr/bin/env bash
# Draws all figures of the documentation except benchmarks.png. Run it from the root of the repository. MNIST is a
# folder with the four original files; missing files are downloaded to it.
set -euo pipefail

lrp-jax explain examples/castle.jpg --out examples --overwrite
lrp-jax compare examples/castle.jpg --out docs --overwrite --width 1000 \
    --show gradient gradient_times_input smooth_grad guided_backprop grad_cam \
           lrp_0 lrp_epsilon lrp_gamma epsilon_plus_flat overview_vgg16 epsilon_gamma_box
lrp-jax layers examples/castle.jpg --out docs --overwrite --width 1500
lrp-jax explain examples/castle.jpg --size 512 --out docs --overwrite --width 1200
lrp-jax mnist rules --data "$MNIST" --out docs --overwrite
lrp-jax mnist removal --data "$MNIST" --count 2000 --out docs --overwrite
lrp-jax mnist networks --data "$MNIST" --count 2000 --out docs --overwrite
lrp-jax table wine --out docs --overwrite
lrp-jax text --model smollm2 "The capital of France is" --contrast London --layers --heads 23 \
    --png docs/capital.png --overwrite
store=$(mktemp -d)
python -c "import numpy as np; from lrp_jax.data import digits; np.save('$store/digits.npy', digits.shipped().images)"
lrp-jax batch "$store/digits.npy" --model mnist_cnn --out "$store/digits.zarr" --ledger
lrp-jax report "$store/digits.zarr" --out docs --overwrite
