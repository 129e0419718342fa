"""TensorFlow Serving's REST API, and what KServe's version 1 adds to it.

https://www.tensorflow.org/tfx/serving/api_rest; https://kserve.github.io/website/docs/reference/api
"""
