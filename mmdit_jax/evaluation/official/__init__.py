"""GenEval itself (Ghosh et al. 2023, arXiv 2310.11513) on photographs of COCO's objects; nothing here needs its code.

``metadata`` and ``prompts`` are the questions, ``tree`` the images that its scorer walks, ``rules`` its decisions over
detections, ``detector`` and ``colours`` the models that see, ``results`` its result file and the table of it.
"""
