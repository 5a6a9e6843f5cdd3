"""From a trained run to a bundle that serves: folding, tables, ONNX, quantisation, parity."""
