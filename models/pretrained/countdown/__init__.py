"""Countdown: the task of the default model, its training and its measurement.

`task` states the game and makes problems, `tokenizer` writes the vocabulary as Hugging Face files,
`train` makes the checkpoint that lies in `checkpoint/`, and `evaluate` measures it.
"""
