"""Pictures and videos: bytes of a file in, patches and the prompt around them out.

    bytes -> image.read_image -> image.to_patches ------------------> Picture --+
    bytes -> video.iter_video -> frames -> image.to_patches each ---> Film -----+--> prompt.expand -> Model.prefill

Whatever is wrong with a file or with the number of files is a `MediaError`.
"""
