"""Networks as graphs of ONNX, modules of torch and files of LiteRT, for all that changes them."""
