"""Training data as TFDS sets on array_record, read without TensorFlow; batches are a function of the global step."""
