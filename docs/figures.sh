#!/usr/bin/env bash
# Draws every picture of the documentation that is made of the shipped photographs and networks; from the repository's root.
set -euo pipefail

lrp-jax explain examples/castle.jpg --out examples --overwrite
lrp-jax compare examples/castle.jpg --out docs --overwrite --width 1500 \
    --show gradient gradient_times_input smooth_grad guided_backprop grad_cam \
           lrp_0 lrp_epsilon lrp_gamma epsilon_plus_flat overview_vgg16 epsilon_gamma_box
lrp-jax layers examples/castle.jpg --out docs --overwrite --width 1500
lrp-jax explain examples/castle.jpg --size 512 --out docs --overwrite --width 1200
