"""From image files to crops on the device: decoding, workers, caches."""
