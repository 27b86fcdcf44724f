"""What storage devices stand on: images, block devices, and the NBD protocol."""
