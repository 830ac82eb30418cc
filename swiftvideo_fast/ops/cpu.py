"""The compiled CPU kernels (_C), imported at the first call: a GPU machine needs no build of them."""


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        from swiftvideo_fast import _C
    except ImportError as error:
        raise ImportError(f"{name} on the CPU needs the extension swiftvideo_fast._C ({error}); build it: "
                          "pip install --no-build-isolation -e .") from error
    return getattr(_C, name)
