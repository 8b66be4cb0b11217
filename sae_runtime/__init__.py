"""Read and steer the features of sparse autoencoders with onnxruntime, without torch."""
