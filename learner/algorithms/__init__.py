"""What an update is made of, by name: advantages, losses, off-policy corrections, rejections, regularisers."""
